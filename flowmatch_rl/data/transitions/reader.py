"""Batches of stored transitions with their rewards, drawn through TorchRL's replay buffer."""

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer, TensorStorage

from flowmatch_rl.batches import (
    ACTION,
    DONE,
    LENGTH,
    NEXT_OBSERVATION,
    OBSERVATION,
    REWARD,
    TERMINATED,
    TRANSITION,
)
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.transitions.segments import RowSampler
from flowmatch_rl.data.transitions.store import TransitionStore


class TransitionReader:
    """Transitions of up to n steps each, as a replay buffer of ``OnlineData`` holds them.

    A transition is shorter where its trajectory ends, by termination or for another reason.

    Args:
        store: The data set.
        n_steps: Steps n of a transition, at least 1.
        batch_size: Transitions per batch.
        seed: Seed, of this process.
        drawn: Batches drawn by the run that is resumed.
        held_out: Trailing rows that are never drawn.

    Raises:
        UserError: If the data set is a shuffled table and n is not 1, or nothing is left to draw.
    """

    def __init__(
        self, store: TransitionStore, n_steps: int, batch_size: int, seed: int, drawn: int = 0, held_out: int = 0
    ) -> None:
        check_range("[1, inf)", n_steps=n_steps, batch_size=batch_size)
        if n_steps > 1 and not store.info.ordered:
            raise UserError(f"n_steps {n_steps} needs trajectories; {store.path} is a shuffled table")
        if held_out >= len(store):
            raise UserError(f"{held_out} of the {len(store)} rows of {store.path} are held out; none are left")
        self._n_steps, self._held_out = n_steps, held_out
        self._transitions = store.transitions.select(*TRANSITION)
        self._remaining = _remaining_steps(store) if n_steps > 1 else torch.empty(0)
        rows = torch.arange(len(store) - held_out) if held_out else None
        self.sampler = RowSampler(rows, seed, drawn)
        self._buffer = TensorDictReplayBuffer(
            storage=TensorStorage(self._transitions), sampler=self.sampler, batch_size=batch_size
        )

    def take(self) -> TensorDictBase:
        """The next batch: batch size (B,), the keys of ``TRANSITION``, and ``LENGTH`` where n is above 1."""
        first = self._buffer.sample()
        return first.select(*TRANSITION) if self._n_steps == 1 else self.read(first["index"])

    def read(self, rows: Tensor) -> TensorDictBase:
        """Transitions that begin at given rows.

        Args:
            rows: Numbers of the rows, shape (B,).
        """
        if self._n_steps == 1:
            return self._transitions[rows]
        length = self._remaining[rows].clamp_max(self._n_steps)
        offsets = torch.arange(self._n_steps)
        window = rows[:, None] + torch.minimum(offsets, length[:, None] - 1)
        rewards, last = self._transitions.get(REWARD)[window].squeeze(-1), rows + length - 1
        return TensorDict(
            {
                OBSERVATION: self._transitions.get(OBSERVATION)[rows],
                ACTION: self._transitions.get(ACTION)[rows],
                REWARD: rewards.masked_fill(offsets >= length[:, None], 0.0),
                NEXT_OBSERVATION: self._transitions.get(NEXT_OBSERVATION)[last],
                TERMINATED: self._transitions.get(TERMINATED)[last],
                LENGTH: length[:, None],
            },
            [len(rows)],
        )

    def held_out(self, number: int) -> TensorDictBase:
        """Transitions that are never drawn, evenly spread over them.

        Args:
            number: How many, at most.
        """
        count = len(self._transitions)
        rows = torch.linspace(count - self._held_out, count - 1, min(number, self._held_out)).long()
        return self.read(rows)


def _remaining_steps(store: TransitionStore) -> Tensor:
    """Steps from each row to the end of its trajectory, itself included, shape (N,)."""
    end = store.transitions.get(DONE).reshape(-1).clone()
    end[-1] = True
    ends, rows = end.nonzero().reshape(-1), torch.arange(len(end))
    return ends[torch.searchsorted(ends, rows)] - rows + 1
