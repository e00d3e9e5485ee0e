"""Tables with one transition per row."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import BLOCK_ROWS
from flowmatch_rl.data.layouts.base import Rows
from flowmatch_rl.data.layouts.columns import ColumnLayout
from flowmatch_rl.data.layouts.steps import ends
from flowmatch_rl.data.tables.columns import require_columns
from flowmatch_rl.data.tables.text import REMARKS
from flowmatch_rl.data.transitions.store import StoreInfo


@dataclass(frozen=True)
class TransitionTable(ColumnLayout):
    """A table with one transition per row, in any file that ``TableFile`` reads.

    In an ordered table a trajectory ends where the next row does not start at the state arrived at.

    Args:
        path: The file.
        observations: Columns of the observation, which give its entries their names.
        actions: Columns of the action.
        next_observations: Columns of the arrival state, in the order of ``observations``.
        reward: Column of the reward; without one the data set has no rewards.
        terminated: Column that is 1 where the arrival state is terminal; without one none is.
        next_actions: Columns of the action taken in the arrival state, in the order of ``actions``.
        ordered: Whether the rows of a trajectory follow each other.
        units: Units of columns by their names, as text such as ``rad``; by default those of a line below the names.
        separator: Character between the values of a text file; found from its first lines if None.
        decimal: Decimal sign of a text file, ``.`` or ``,``; found from its numbers if None.
        action_low: Value in the file that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the file that becomes the action 1.

    Raises:
        UserError: If there are not as many arrival columns as columns.
    """

    next_observations: list[str] = field(kw_only=True)
    next_actions: list[str] | None = field(default=None, kw_only=True)
    ordered: bool = field(default=False, kw_only=True)

    def describe(self) -> StoreInfo:
        """Read the table, which is small, and look at its columns."""
        frame = self._frame()
        has_next_action = self.next_actions is not None
        info = self.description(
            self.observations,
            len(self.actions),
            len(frame),
            self.ordered,
            has_next_action,
            has_rewards=self.reward is not None,
            remarks=frame.attrs.get(REMARKS, ()),
        )
        return self.named(info, frame, self.observations, self.actions)

    def rows(self) -> Iterator[Rows]:
        """Read the transitions in the order of the table."""
        frame, table = self._frame(), f"the table {self.path!r}"
        last = self._last(frame)
        for start in range(0, len(frame), BLOCK_ROWS):
            part = frame.iloc[start : start + BLOCK_ROWS]
            zeros = np.zeros(len(part))
            terminated = self.flags(part, self.terminated, table)
            yield Rows(
                place=table,
                observation=self.numbers(part, self.observations, table).astype(np.float32),
                action=self.numbers(part, self.actions, table),
                reward=(self.numbers(part, [self.reward], table)[:, 0] if self.reward else zeros).astype(np.float32),
                next_observation=self.numbers(part, self.next_observations, table).astype(np.float32),
                terminated=terminated,
                truncated=last[start : start + len(part)] & ~terminated,
                next_action=self.numbers(part, self.next_actions, table) if self.next_actions is not None else None,
            )

    def _last(self, frame: pd.DataFrame) -> np.ndarray:
        """Whether rows are the last of their trajectories; none is in a table without order."""
        if not self.ordered:
            return np.zeros(len(frame), bool)
        starts, arrivals = (frame[names].to_numpy() for names in (self.observations, self.next_observations))
        return ends(np.append((starts[1:] != arrivals[:-1]).any(1), True))

    def _frame(self) -> pd.DataFrame:
        pairs = {"next_observations": "observations", "next_actions": "actions"}
        for arrivals, starts in pairs.items():
            got, wanted = getattr(self, arrivals), getattr(self, starts)
            if not wanted:
                raise UserError(f"{starts} must name at least one column")
            if got is not None and len(got) != len(wanted):
                raise UserError(f"{arrivals} has {len(got)} columns, wanted {len(wanted)} as {starts}")
        frame = self.load(self.path)
        optional = [name for name in (self.reward, self.terminated) if name is not None]
        names = [*self.observations, *self.actions, *self.next_observations, *(self.next_actions or []), *optional]
        require_columns(frame, names, f"the table {self.path!r}")
        return frame
