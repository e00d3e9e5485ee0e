"""The range of the actions of a log, gathered part by part."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.base import ROUND_OFF
from flowmatch_rl.schema import ActionBounds


class ActionRange:
    """Gathers the extremes of actions, and how many lie outside of their bounds.

    Args:
        columns: Names of the A entries of an action.
        bounds: Their bounds; None if none are given.
    """

    def __init__(self, columns: Sequence[str], bounds: ActionBounds | None) -> None:
        self._columns, self._given = columns, bounds
        self._low, self._high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
        self._farthest, self._example = 0.0, ""
        self.num_rows = self.num_outside = 0

    @property
    def bounds(self) -> ActionBounds:
        """The bounds given, or else the extremes of the actions."""
        return self._given or ActionBounds(tuple(self._low.tolist()), tuple(self._high.tolist()))

    def add(self, action: np.ndarray, where: Callable[[int], str]) -> None:
        """Take actions in.

        Args:
            action: Actions in the unit of the log, float64, shape (B, A).
            where: Returns what a row is called, given its place among these.
        """
        self.num_rows += len(action)
        self._low, self._high = np.minimum(self._low, action.min(0)), np.maximum(self._high, action.max(0))
        if self._given is None:
            return
        distance = self._given.standardise(torch.from_numpy(action)).abs().numpy()
        self.num_outside += int((distance > 1.0 + ROUND_OFF).any(1).sum())
        row, entry = (int(place) for place in np.unravel_index(distance.argmax(), distance.shape))
        if distance[row, entry] > max(1.0 + ROUND_OFF, self._farthest):
            self._farthest = float(distance[row, entry])
            value, low, high = action[row, entry], self._given.low[entry], self._given.high[entry]
            beyond = max(low - value, value - high)
            self._example = (
                f"the farthest is {value:g} of {self._columns[entry]!r} in {where(row)}, {beyond:.4g} beyond "
                f"[{low:g}, {high:g}]"
            )

    def remark(self, clips: bool, path: str) -> list[str]:
        """What a reader should know about the range of the actions, at most one phrase.

        Args:
            clips: Whether actions outside are moved to their bounds.
            path: Where the log is.

        Raises:
            UserError: If actions lie outside and are not.
        """
        if self._given is None:
            extremes = ", ".join(
                f"{name} from {low:.4g} to {high:.4g}"
                for name, low, high in zip(self._columns, self._low, self._high, strict=True)
            )
            return [f"action_low and action_high are the extremes of the log: {extremes}; give those of the actuators"]
        if not self.num_outside:
            return []
        found = f"{self.num_outside:,} of {self.num_rows:,} actions of {path!r} lie outside of their bounds"
        if not clips:
            raise UserError(f"{found}; {self._example}; widen action_low and action_high, or set clip_actions to true")
        return [f"{found} and are clipped; {self._example}"]
