"""Batches of stored transitions with their rewards, drawn through TorchRL's replay buffer."""

import warnings

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer, TensorStorage

from flowmatch_rl.batches import (
    ACTION,
    GOAL,
    LENGTH,
    NEXT_OBSERVATION,
    OBSERVATION,
    REWARD,
    TERMINATED,
    TRANSITION,
)
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.transitions.goals import GoalReader, Goals, remaining_steps
from flowmatch_rl.data.transitions.segments import RowSampler
from flowmatch_rl.data.transitions.store import TransitionStore


class TransitionReader:
    """Transitions of up to n steps each, as a replay buffer of ``OnlineData`` holds them.

    A transition is shorter where its trajectory ends, by termination or for another reason; one of a chunk of actions
    has all of them, so that those that a trajectory ends within are not drawn.

    Args:
        store: The data set.
        n_steps: Steps n of a transition, at least 1.
        batch_size: Transitions per batch.
        seed: Seed, of this process.
        drawn: Batches drawn by the run that is resumed.
        held_out: Trailing rows that are never drawn.
        chunk: Actions h of a transition, 1 or n; with more than 1 they lie side by side, shape (B, h A).
        goals: Goals that the transitions are relabelled with; None for none.

    Raises:
        UserError: If the data set is a shuffled table and n is not 1, nothing is left to draw, every trajectory is
            shorter than a chunk, or no row that is held out begins one.
    """

    def __init__(
        self,
        store: TransitionStore,
        n_steps: int,
        batch_size: int,
        seed: int,
        drawn: int = 0,
        held_out: int = 0,
        chunk: int = 1,
        goals: Goals | None = None,
    ) -> None:
        check_range("[1, inf)", n_steps=n_steps, batch_size=batch_size, action_chunk=chunk)
        if chunk not in (1, n_steps):
            raise UserError(f"action_chunk must be 1 or n_steps {n_steps}, got {chunk}")
        if n_steps > 1 and not store.info.ordered:
            raise UserError(f"n_steps {n_steps} needs trajectories; {store.path} is a shuffled table")
        if held_out >= len(store):
            raise UserError(f"{held_out} of the {len(store)} rows of {store.path} are held out; none are left")
        self._n_steps, self._batch_size, self._held_out = n_steps, batch_size, held_out
        self._transitions = store.transitions.select(*TRANSITION)
        self._remaining = remaining_steps(store) if n_steps > 1 else torch.empty(0)
        self._chunk = chunk
        self._goals = None if goals is None else GoalReader(store, goals, held_out)
        rows = torch.arange(len(store) - held_out) if held_out else None
        if chunk > 1:
            lengths = _lengths(self._remaining)
            short = int((lengths < chunk).sum())
            if short == len(lengths):
                raise UserError(
                    f"action_chunk {chunk} is longer than every trajectory of {store.path}; the longest has "
                    f"{int(lengths.max())} steps"
                )
            if short:
                warnings.warn(
                    f"{short} of {len(lengths)} trajectories of {store.path} are shorter than action_chunk {chunk}: "
                    f"the shortest has {int(lengths.min())} steps; they are left out",
                    stacklevel=2,
                )
            if held_out and len(self._held_out_rows()) == 0:
                needed = int((self._remaining.flip(0) >= chunk).nonzero()[0]) + 1
                raise UserError(
                    f"none of the {held_out} rows of {store.path} that are held out has the {chunk} steps of "
                    f"action_chunk {chunk}; raise held_out to at least {needed} of the {len(store)} rows, set it to 0, "
                    "or lower action_chunk"
                )
        if n_steps > 1:
            # No transition reaches into the rows that are held out.
            rows = torch.arange(len(store) - held_out)
            used = self._remaining[rows].clamp_max(n_steps)
            rows = rows[(rows + used <= len(store) - held_out) & (self._remaining[rows] >= chunk)]
        if rows is not None and len(rows) == 0:
            raise UserError(f"{store.path} has no trajectory of {chunk} steps before the {held_out} rows held out")
        self.sampler = RowSampler(rows, seed, drawn)
        self._buffer = TensorDictReplayBuffer(storage=TensorStorage(self._transitions), sampler=self.sampler)

    def take(self, number: int | None = None) -> TensorDictBase:
        """The next batch: batch size (B,), the keys of ``TRANSITION``, ``LENGTH`` where n is above 1, perhaps ``GOAL``.

        Args:
            number: Transitions B, ``batch_size`` if None.
        """
        first = self._buffer.sample(self._batch_size if number is None else number)
        rows = first["index"]
        batch = first.select(*TRANSITION) if self._n_steps == 1 else self.read(rows)
        if self._goals is not None:
            uniform = self.sampler.uniform(GoalReader.num_uniforms * len(rows)).reshape(-1, len(rows))
            batch.set(GOAL, self._goals.draw(rows, uniform))
        return batch

    def read(self, rows: Tensor) -> TensorDictBase:
        """Transitions that begin at given rows, without goals.

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
                ACTION: self._transitions.get(ACTION)[window if self._chunk > 1 else rows].flatten(1),
                REWARD: rewards.masked_fill(offsets >= length[:, None], 0.0),
                NEXT_OBSERVATION: self._transitions.get(NEXT_OBSERVATION)[last],
                TERMINATED: self._transitions.get(TERMINATED)[last],
                LENGTH: length[:, None],
            },
            [len(rows)],
        )

    def held_out(self, number: int) -> TensorDictBase:
        """Transitions that are never drawn, evenly spread over them, with the same goals each time.

        Args:
            number: How many, at most.
        """
        rows = self._held_out_rows()
        rows = rows[torch.arange(min(number, len(rows))) * (len(rows) - 1) // max(1, min(number, len(rows)) - 1)]
        batch = self.read(rows)
        return batch if self._goals is None else batch.set(GOAL, self._goals.draw(rows, _uniform(len(rows), seed=0)))

    def goal_table(self, number: int, seed: int) -> Tensor:
        """Goals of rows that may be drawn, in the units of the environment, shape (number, G).

        Args:
            number: How many; rows are drawn with replacement.
            seed: Seed of the rows and the goals.

        Raises:
            ValueError: If the transitions have no goals.
        """
        if self._goals is None:
            raise ValueError("expected transitions with goals, got none")
        choice, *uniform = _uniform(number, seed, GoalReader.num_uniforms + 1)
        rows = torch.arange(len(self._transitions) - self._held_out) if self.sampler.rows is None else self.sampler.rows
        return self._goals.draw(rows[(choice * len(rows)).long()], torch.stack(uniform))

    def _held_out_rows(self) -> Tensor:
        """Rows that are held out, without those whose trajectory ends within a chunk."""
        rows = torch.arange(len(self._transitions) - self._held_out, len(self._transitions))
        return rows[self._remaining[rows] >= self._chunk] if self._chunk > 1 else rows


def _uniform(number: int, seed: int, kinds: int = GoalReader.num_uniforms) -> Tensor:
    """Uniform noise of a seed, float64, shape (kinds, number)."""
    return torch.rand(kinds, number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _lengths(remaining: Tensor) -> Tensor:
    """Steps of each trajectory, given those that remain at each row."""
    ends = remaining == 1
    begins = torch.cat([torch.ones_like(ends[:1]), ends[:-1]])
    return remaining[begins]
