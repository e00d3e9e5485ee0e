"""What every layout of stored transitions has in common: its description, its blocks, and the units of its actions."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.batches import ACTION, DONE, NEXT_ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED, TRUNCATED

ROUND_OFF = 1e-5
"""How far beyond -1 and 1 an action may lie and still be taken for one of them."""


@dataclass(frozen=True)
class LayoutInfo:
    """What a layout holds, known before its transitions are read.

    Attributes:
        columns: Names of the S entries of an observation.
        action_dim: Dimension A of the action.
        num_transitions: Transitions in all blocks.
        ordered: Whether the rows of a trajectory follow each other, each starting where the one before arrived.
        action_low: Values that the action -1 stands for, in the files' units; None where files hold [-1, 1].
        action_high: Values that the action 1 stands for.
        has_next_action: Whether blocks hold the actions taken in the arrival states.
        remarks: What a reader of the files should know, a line each.
    """

    columns: tuple[str, ...]
    action_dim: int
    num_transitions: int
    ordered: bool
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    has_next_action: bool = False
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Transitions of one file, checked but for the range of their actions, which are in the file's units.

    Attributes:
        place: The file, and the part of it, for messages.
        observation: Observations, float32, shape (B, S).
        action: Actions, float64, shape (B, A).
        reward: Rewards, float32, shape (B,).
        next_observation: Arrival states, float32, shape (B, S).
        terminated: Whether arrival states are terminal, boolean, shape (B,).
        truncated: Whether the trajectory ends here for another reason, boolean, shape (B,).
        next_action: Actions taken in the arrival states, float64, shape (B, A), or None.
    """

    place: str
    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    next_action: np.ndarray | None = None


@dataclass(frozen=True)
class Layout(abc.ABC):
    """A way to lay out transitions in files, which other software writes.

    Args:
        path: The file or folder.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.

    Raises:
        ValueError: If only one of the bounds is given, or they are out of order.
    """

    path: str
    action_low: float | list[float] | None = field(default=None, kw_only=True)
    action_high: float | list[float] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.action_low is None) != (self.action_high is None):
            raise ValueError(
                f"got action_low {self.action_low} and action_high {self.action_high}, wanted both or none"
            )
        if self.action_low is not None and self.action_high is not None:
            low, high = np.atleast_1d(self.action_low), np.atleast_1d(self.action_high)
            if len(low) != len(high) and 1 not in (len(low), len(high)):
                raise ValueError(f"action_low and action_high have {len(low)} and {len(high)} values, wanted as many")
            if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
                raise ValueError(f"action_low must lie below action_high, got {self.action_low} and {self.action_high}")

    @abc.abstractmethod
    def describe(self) -> LayoutInfo:
        """Read what there is, without the transitions themselves.

        Raises:
            FileNotFoundError: If there is no such file or folder.
            ValueError: If the files do not have this layout; the message names the file, the entry, what it holds and
                what was wanted.
        """

    @abc.abstractmethod
    def rows(self) -> Iterator[Rows]:
        """Read the transitions in the units of the files, always in the same order.

        Raises:
            ValueError: As ``describe``; and if a number is not finite.
        """

    def blocks(self) -> Iterator[TensorDict]:
        """Read the transitions block by block, always in the same order.

        Yields:
            TensorDicts of batch size (B,), B differing from block to block, with the keys ``observation`` (B, S),
            ``action`` in [-1, 1] (B, A), ``next/observation`` (B, S), and of shape (B, 1) ``next/reward``,
            ``next/terminated``, ``next/truncated`` and ``next/done``; perhaps ``next/action`` (B, A).

        Raises:
            ValueError: As ``rows``; and if an action lies outside of its range.
        """
        for rows in self.rows():
            block = TensorDict(
                {OBSERVATION: torch.from_numpy(rows.observation), ACTION: self._unit_actions(rows.action, rows.place)},
                batch_size=[len(rows.observation)],
            )
            block[NEXT_OBSERVATION] = torch.from_numpy(rows.next_observation)
            if rows.next_action is not None:
                block[NEXT_ACTION] = self._unit_actions(rows.next_action, rows.place)
            columns = {
                REWARD: rows.reward,
                TERMINATED: rows.terminated,
                TRUNCATED: rows.truncated,
                DONE: rows.terminated | rows.truncated,
            }
            for key, column in columns.items():
                block[key] = torch.from_numpy(column)[:, None]
            yield block

    def bounds(self, action_dim: int) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
        """Values that the actions -1 and 1 stand for, one per dimension; None where the files hold [-1, 1].

        Args:
            action_dim: Dimension A of the action.

        Raises:
            ValueError: If there is another number of bounds.
        """
        if self.action_low is None:
            return None, None
        low, high = (np.atleast_1d(np.asarray(bound, np.float64)) for bound in (self.action_low, self.action_high))
        for name, bound in (("action_low", low), ("action_high", high)):
            if len(bound) not in (1, action_dim):
                raise ValueError(f"{name} has {len(bound)} values, wanted 1 or {action_dim} for actions of {self.path}")
        return tuple(np.broadcast_to(low, action_dim).tolist()), tuple(np.broadcast_to(high, action_dim).tolist())

    def _unit_actions(self, action: np.ndarray, place: str) -> Tensor:
        """Actions scaled into [-1, 1], float32, shape (B, A)."""
        low, high = self.bounds(action.shape[1])
        unit = action if low is None else 2.0 * (action - np.array(low)) / (np.array(high) - np.array(low)) - 1.0
        if unit.size and np.abs(unit).max() > 1.0 + ROUND_OFF:
            found = f"[{action.min():g}, {action.max():g}]"
            wanted = (
                "[-1, 1]; give action_low and action_high"
                if low is None
                else f"[{self.action_low}, {self.action_high}]"
            )
            raise ValueError(f"the actions of {place} lie in {found}, wanted {wanted}")
        return torch.from_numpy(unit.clip(-1.0, 1.0)).float()
