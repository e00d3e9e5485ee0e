"""Segments of stored trajectories, drawn in batches through TorchRL's replay buffer."""

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler

from flowmatch_rl.batches import (
    ACTION,
    DONE,
    EMBEDDING,
    NEXT_ACTION,
    NEXT_OBSERVATION,
    OBSERVATION,
    TERMINATED,
    SegmentNeeds,
)
from flowmatch_rl.checks import UserError
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.data.transitions.time_limits import ENDLESS, draw_time_limits
from flowmatch_rl.testbeds import geometric_steps

MOST_UNOBSERVED = 0.05
"""Fraction of an occupancy that may lie beyond the time limit of a trajectory its states are drawn from."""


class RowSampler(Sampler):
    """Rows drawn with replacement; each batch depends on the seed and its own number alone.

    Args:
        rows: Rows to draw from, or None for all.
        seed: Seed, of this process.
        drawn: Batches drawn by the run that is resumed.
    """

    def __init__(self, rows: Tensor | None, seed: int, drawn: int = 0) -> None:
        super().__init__()
        self.rows = rows
        self.seed = seed
        self.drawn = drawn
        self._generator = torch.Generator()

    def sample(self, storage: Any, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Numbers of ``batch_size`` rows."""
        self._generator.manual_seed((self.seed * 1_000_003 + self.drawn) % 2**63)
        self.drawn += 1
        count = len(storage) if self.rows is None else len(self.rows)
        index = torch.randint(count, (batch_size,), generator=self._generator)
        return index if self.rows is None else self.rows[index], {}

    def uniform(self, number: int) -> Tensor:
        """Uniform noise in [0, 1) that belongs to the batch drawn last, float64, shape (number,)."""
        return torch.rand(number, generator=self._generator, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Number of batches drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume after a number of batches drawn."""
        self.drawn = state_dict["drawn"]

    def dumps(self, path: Any) -> None:
        """Nothing is written: the state travels with the checkpoint."""

    def loads(self, path: Any) -> None:
        """Nothing is read."""

    def _empty(self) -> None:
        """There is nothing to forget."""


class SegmentReader:
    """Batches of segments as dictionaries with the names of the attributes of ``Segment``.

    Args:
        store: The data set.
        needs: What the segments must hold.
        batch_size: Segments per batch.
        seed: Seed, of this process.
        drawn: Batches drawn by the run that is resumed.
        held_out: Trailing rows that are kept for evaluation.

    Raises:
        UserError: If the data set lacks what is needed.
    """

    def __init__(
        self, store: TransitionStore, needs: SegmentNeeds, batch_size: int, seed: int, drawn: int = 0, held_out: int = 0
    ) -> None:
        self._needs, self._known = needs, store.info.has_next_action
        self._check(store)
        keys = [OBSERVATION, ACTION, NEXT_OBSERVATION, TERMINATED]
        keys += [EMBEDDING] if store.info.embedding_dim else []
        keys += [NEXT_ACTION] if self._known and needs.next_action else []
        self._transitions = store.transitions.select(*keys)
        self._remaining: Tensor | None = None
        self._terminates = torch.empty(0, dtype=torch.bool)
        rows = None
        if needs.num_steps > 1 or needs.future_discounts or (needs.next_action and not self._known):
            self._remaining, self._terminates, rows = self._usable(store)
        if held_out:
            rows = torch.arange(len(store)) if rows is None else rows
            rows = rows[rows < len(store) - held_out]
        if rows is not None and len(rows) == 0:
            raise UserError(f"{store.path} has no trajectory long enough: {self._wanted_steps()}")
        self.sampler = RowSampler(rows, seed, drawn)
        self._buffer = TensorDictReplayBuffer(
            storage=TensorStorage(self._transitions), sampler=self.sampler, batch_size=batch_size
        )

    def take(self) -> dict[str, Tensor]:
        """The next batch."""
        first = self._buffer.sample()
        rows = first["index"]
        batch = {"observation": first[OBSERVATION], "action": first[ACTION]}
        batch["embedding"] = first.get(EMBEDDING, torch.empty(len(rows), 0))
        batch |= self._steps(first, rows)
        if self._needs.future_discounts is not None:
            uniform = self.sampler.uniform(2 * len(rows)).reshape(2, -1)
            batch["discount"] = self._needs.future_discounts(uniform[0].float())
            remaining = self._remaining_steps(rows)
            # A terminal state is never left. Where a trajectory is cut, the distribution is too.
            observed = remaining.masked_fill(self._terminates[rows], ENDLESS)
            steps = torch.minimum(geometric_steps(uniform[1], batch["discount"], observed), remaining)
            batch["future"] = self._transitions.get(NEXT_OBSERVATION)[rows + steps - 1]
        return batch

    def _steps(self, first: TensorDictBase, rows: Tensor) -> dict[str, Tensor]:
        steps = self._needs.num_steps
        length = self._remaining_steps(rows).clamp_max(steps)
        batch = {"length": length}
        if steps == 1:
            batch["arrivals"], batch["terminated"] = first[NEXT_OBSERVATION][:, None], first[TERMINATED]
        else:
            ahead = torch.minimum(torch.arange(steps), length[:, None] - 1)
            window = rows[:, None] + ahead
            batch["arrivals"] = self._transitions.get(NEXT_OBSERVATION)[window]
            batch["terminated"] = self._transitions.get(TERMINATED)[window].squeeze(-1)
        if self._needs.next_action:
            if self._known:
                batch["next_action"] = self._transitions.get(NEXT_ACTION)[rows + length - 1]
            else:
                # After a termination there is none, and none is used.
                following = (rows + length).clamp_max(len(self._transitions) - 1)
                batch["next_action"] = self._transitions.get(ACTION)[following]
        return batch

    def _wanted_steps(self) -> str:
        if self._needs.future_discounts is None:
            return "an action must follow a step, so that it takes two"
        highest = float(self._needs.future_discounts(torch.ones(1)))
        steps = math.ceil(math.log(MOST_UNOBSERVED) / math.log(highest))
        return (
            f"at discount {highest:.6g} it takes {steps} steps to observe {1.0 - MOST_UNOBSERVED:.0%} of an occupancy"
        )

    def _remaining_steps(self, rows: Tensor) -> Tensor:
        return torch.ones_like(rows) if self._remaining is None else self._remaining[rows]

    def _usable(self, store: TransitionStore) -> tuple[Tensor, Tensor, Tensor]:
        """Remaining steps of the trajectory of each row.

        Rows are used or not by their distance to the time limit of their trajectory, not by what followed.

        Returns:
            Steps to its last state with what is needed, whether it ends in a terminal state, both of shape (N,), and
            the rows that have such a state.
        """
        end = store.transitions.get(DONE).reshape(-1).clone()
        end[-1] = True
        ends = end.nonzero().reshape(-1)
        length = ends.diff(prepend=torch.tensor([-1]))
        terminal = store.transitions.get(TERMINATED).reshape(-1)[ends]
        uniform = torch.rand(len(ends), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        limit = draw_time_limits(length, terminal, uniform)
        if self._needs.next_action and not self._known:
            limit -= 1  # the action after a truncation is not in the data
        terminal &= length <= limit
        row = torch.arange(len(end))
        own = torch.searchsorted(ends, row)
        time = row - (ends - length + 1)[own]
        left = limit[own] - time
        usable = left >= 1
        if self._needs.future_discounts is not None:
            highest = self._needs.future_discounts(torch.ones(1)).double()
            usable &= highest**left <= MOST_UNOBSERVED
        return torch.minimum(length, limit)[own] - time, terminal[own], usable.nonzero().reshape(-1)

    def _check(self, store: TransitionStore) -> None:
        needs, info = self._needs, store.info
        if needs.next_action and not (info.ordered or self._known):
            raise UserError(
                f"{store.path} is a shuffled table without next actions; name a policy to model, or convert the data "
                "with next_actions"
            )
        if needs.num_steps > 1 and not info.ordered:
            raise UserError(f"num_steps {needs.num_steps} needs trajectories; {store.path} is a shuffled table")
        if needs.future_discounts is not None and not info.ordered:
            raise UserError(f"MonteCarloCFM needs trajectories; {store.path} is a shuffled table")
