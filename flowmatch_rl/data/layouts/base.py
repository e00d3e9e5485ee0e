"""The common part of all layouts of stored transitions: description, blocks, and units of actions."""

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.batches import ACTION, DONE, NEXT_ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED
from flowmatch_rl.checks import UserError
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.schema import ActionBounds

ROUND_OFF = 1e-5
"""How far beyond -1 and 1 an action may lie and still be taken for one of them."""


@dataclass(frozen=True)
class Rows:
    """Transitions of one file, checked except for the range of their actions, which are in the file's units.

    Attributes:
        place: The file, and the part of it, for messages.
        observation: Observations, float32, shape (B, S).
        action: Actions, float64, shape (B, A).
        reward: Rewards, float32, shape (B,).
        next_observation: Arrival states, float32, shape (B, S).
        terminated: Whether arrival states are terminal, boolean, shape (B,).
        truncated: Whether the trajectory ends here for another reason, boolean, shape (B,).
        next_action: Actions taken in the arrival states, float64, shape (B, A), or None.
        bounds: Values that the actions -1 and 1 stand for, if the layout found them itself.
    """

    place: str
    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_action: np.ndarray | None = None
    bounds: ActionBounds | None = None


@dataclass(frozen=True)
class Layout(abc.ABC):
    """A way to lay out transitions in files, which other software writes.

    Args:
        path: The file or folder.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.

    Raises:
        UserError: If only one of the bounds is given, or they are out of order.
    """

    path: str
    action_low: float | list[float] | None = field(default=None, kw_only=True)
    action_high: float | list[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.action_low is None) != (self.action_high is None):
            raise UserError(f"got action_low {self.action_low} and action_high {self.action_high}, wanted both or none")
        lengths = {np.size(bound) for bound in (self.action_low, self.action_high) if bound is not None}
        self.bounds(max(lengths, default=1))

    @abc.abstractmethod
    def describe(self) -> StoreInfo:
        """Read what there is, without the transitions themselves.

        Raises:
            MissingFileError: If there is no such file or folder.
            UserError: If the files do not have this layout; the message names the file, the entry, what it holds and
                what was wanted.
        """

    @abc.abstractmethod
    def rows(self) -> Iterator[Rows]:
        """Read the transitions in the units of the files, always in the same order.

        Raises:
            UserError: As ``describe``; and if a number is not finite.
        """

    def blocks(self) -> Iterator[TensorDict]:
        """Read the transitions block by block, always in the same order.

        Yields:
            TensorDicts of batch size (B,), B differing from block to block, with the keys ``observation`` (B, S),
            ``action`` in [-1, 1] (B, A), ``next/observation`` (B, S), and of shape (B, 1) ``next/reward``,
            ``next/terminated``, ``next/truncated`` and ``next/done``; perhaps ``next/action`` (B, A).

        Raises:
            UserError: As ``rows``; and if an action lies outside of its range.
        """
        for rows in self.rows():
            block = TensorDict(
                {OBSERVATION: torch.from_numpy(rows.observation), ACTION: self._unit_actions(rows.action, rows)},
                batch_size=[len(rows.observation)],
            )
            block[NEXT_OBSERVATION] = torch.from_numpy(rows.next_observation)
            if rows.next_action is not None:
                block[NEXT_ACTION] = self._unit_actions(rows.next_action, rows)
            columns = {
                REWARD: rows.reward,
                TERMINATED: rows.terminated,
                TRUNCATED: rows.truncated,
                DONE: rows.terminated | rows.truncated,
            }
            for key, column in columns.items():
                block[key] = torch.from_numpy(column)[:, None]
            yield block

    def bounds(self, action_dim: int) -> ActionBounds | None:
        """Values that the actions -1 and 1 stand for; None where the files hold [-1, 1].

        Args:
            action_dim: Dimension A of the action.

        Raises:
            UserError: If there is another number of bounds, or they are out of order.
        """
        if self.action_low is None or self.action_high is None:
            return None
        bounds = []
        for name, bound in (("action_low", self.action_low), ("action_high", self.action_high)):
            values = bound if isinstance(bound, list) else [bound]
            if len(values) not in (1, action_dim):
                raise UserError(f"{name} has {len(values)} values, wanted 1 or {action_dim} for actions of {self.path}")
            bounds.append(tuple(map(float, values * action_dim))[:action_dim])
        return ActionBounds(*bounds)

    def description(
        self,
        columns: Sequence[str],
        action_dim: int,
        num_transitions: int,
        ordered: bool = True,
        has_next_action: bool = False,
        has_rewards: bool = True,
        remarks: Sequence[str] = (),
    ) -> StoreInfo:
        """Description of the data set that the files make.

        Args:
            columns: Names of the S entries of an observation.
            action_dim: Dimension A of the action.
            num_transitions: Transitions in all blocks.
            ordered: Whether the rows of a trajectory follow each other, each starting where the one before arrived.
            has_next_action: Whether blocks hold the actions taken in the arrival states.
            has_rewards: Whether the files hold rewards.
            remarks: What a reader of the files should know, a line each.

        Raises:
            UserError: If there are no transitions, or the bounds of the action do not fit.
        """
        bounds = self.bounds(action_dim)
        if num_transitions < 1:
            raise UserError(f"{self.path!r} holds no transitions")
        return StoreInfo(
            columns=tuple(columns),
            action_dim=action_dim,
            num_transitions=num_transitions,
            ordered=ordered,
            has_next_action=has_next_action,
            has_rewards=has_rewards,
            action_low=None if bounds is None else bounds.low,
            action_high=None if bounds is None else bounds.high,
            provenance={"made_by": "convert_layout", "layout": repr(self), "remarks": list(remarks)},
        )

    def _unit_actions(self, action: np.ndarray, rows: Rows) -> Tensor:
        """Actions of some rows scaled into [-1, 1], float32, shape (B, A)."""
        bounds, unit = rows.bounds or self.bounds(action.shape[1]), torch.from_numpy(action)
        if bounds is not None:
            unit = bounds.standardise(unit)
        if unit.numel() and float(unit.abs().max()) > 1.0 + ROUND_OFF:
            found = f"[{action.min():g}, {action.max():g}]"
            wanted = (
                f"[{self.action_low}, {self.action_high}]" if bounds else "[-1, 1]; give action_low and action_high"
            )
            raise UserError(f"the actions of {rows.place} lie in {found}, wanted {wanted}")
        return unit.clamp(-1.0, 1.0).float()


@dataclass(frozen=True)
class ArrayLayout(Layout, abc.ABC):
    """A layout of plain arrays, whose files do not name the entries of an observation.

    Args:
        columns: Names of the entries of an observation; by default ``observation_0`` and so on.
    """

    columns: list[str] | None = field(default=None, kw_only=True)

    def column_names(self, held: Sequence[str]) -> tuple[str, ...]:
        """Names of the entries of an observation.

        Args:
            held: Names to use unless the layout was given others.

        Raises:
            UserError: If their number differs.
        """
        if self.columns is not None and len(self.columns) != len(held):
            raise UserError(
                f"got {len(self.columns)} columns, wanted {len(held)}, the size of an observation of {self.path!r}"
            )
        return tuple(held if self.columns is None else self.columns)


def vector_names(name: str, size: int) -> list[str]:
    """Names of the entries of a vector, as ``collect_transitions`` gives them: ``name_0``, ``name_1`` and so on."""
    return [f"{name}_{place}" for place in range(size)]
