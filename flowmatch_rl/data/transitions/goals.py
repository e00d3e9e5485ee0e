"""Transitions relabelled with goals: states that their trajectories arrive at later."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.batches import DONE, NEXT_OBSERVATION
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.transitions.store import StoreInfo, TransitionStore
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import geometric_steps


@dataclass(frozen=True)
class Goals:
    """What the goals of transitions are, and how they are drawn.

    The goal of a row is what its trajectory arrives at k steps later, with k = 1, 2, ... of probability
    ``(1 - discount) discount^(k - 1)`` among the steps that the trajectory has left.

    Args:
        columns: Entries of the state that make up a goal.
        discount: Discount per step, in [0, 1); goals lie 1 / (1 - discount) steps ahead on average in a long
            trajectory.
        random_fraction: Fraction of the goals that are of a random row instead, whatever its trajectory, in [0, 1].

    Raises:
        UserError: If there are no columns, one is given twice, or a number is out of its range.
    """

    columns: tuple[str, ...]
    discount: float = 0.95
    random_fraction: float = 0.0

    def __post_init__(self) -> None:
        check_range("[0, 1)", discount=self.discount)
        check_range("[0, 1]", random_fraction=self.random_fraction)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise UserError(f"columns of goals must be different names, at least one, got {list(self.columns)}")

    def schema(self, info: StoreInfo) -> TableSchema:
        """Names and units of the goals of a data set, in the order of ``columns``.

        Args:
            info: Description of the data set.

        Raises:
            UserError: If it lacks a column, or is a shuffled table.
        """
        if not info.ordered:
            raise UserError(f"goals ({', '.join(self.columns)}) need trajectories; the data set is a shuffled table")
        if unknown := [name for name in self.columns if name not in info.columns]:
            raise UserError(f"the state has no column {unknown[0]!r} for a goal; it has {', '.join(info.columns)}")
        places = [info.columns.index(name) for name in self.columns]
        mean, deviation = ([values[i] for i in places] for values in (info.observation_mean, info.observation_std))
        units = tuple(info.column_units[i] for i in places) if any(info.column_units) else ()
        return TableSchema(self.columns, tuple(mean), tuple(deviation), units=units)


class GoalReader:
    """Goals of the rows of a data set. Those of training rows are of training rows, also where a trajectory goes on.

    Args:
        store: The data set, ordered.
        goals: What they are.
        held_out: Trailing rows that are kept for evaluation, fewer than there are.
    """

    num_uniforms = 3
    """Random numbers per goal."""

    def __init__(self, store: TransitionStore, goals: Goals, held_out: int = 0) -> None:
        self._goals, self._trained, self._number = goals, len(store) - held_out, len(store)
        self._entries = [store.info.columns.index(name) for name in goals.columns]
        self._states = store.transitions.get(NEXT_OBSERVATION)
        self._remaining = remaining_steps(store)

    def draw(self, rows: Tensor, uniform: Tensor) -> Tensor:
        """Goals in the units of the environment.

        Args:
            rows: Numbers of the rows, shape (B,).
            uniform: Uniform noise in [0, 1), float64, shape (num_uniforms, B).

        Returns:
            Goals, shape (B, G).
        """
        trains = rows < self._trained
        first, end = torch.where(trains, 0, self._trained), torch.where(trains, self._trained, self._number)
        left = torch.minimum(self._remaining[rows], end - rows)
        ahead = rows + geometric_steps(uniform[0], self._goals.discount, left) - 1
        anywhere = first + (uniform[1] * (end - first)).long()
        chosen = torch.where(uniform[2] < self._goals.random_fraction, anywhere, ahead)
        return self._states[chosen][:, self._entries]


def remaining_steps(store: TransitionStore) -> Tensor:
    """Steps from each row to the end of its trajectory, itself included, shape (N,).

    Args:
        store: The data set, ordered.
    """
    end = store.transitions.get(DONE).reshape(-1).clone()
    end[-1] = True
    ends, rows = end.nonzero().reshape(-1), torch.arange(len(end))
    return ends[torch.searchsorted(ends, rows)] - rows + 1
