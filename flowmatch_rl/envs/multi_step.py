"""Multi-step transitions, made of single steps as they are collected."""

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from flowmatch_rl.batches import ACTION, DONE, LENGTH, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED
from flowmatch_rl.checks import UserError, check_range

Key = str | tuple[str, str]


class MultiStep:
    """Folds the steps of several environments into transitions of up to n steps each.

    Every step begins one transition. It lasts until n steps were taken or the episode ends, by termination or
    truncation, and is returned then. Until then the steps wait, at most n - 1 per environment. Rewards are kept apart,
    since the learner discounts them. Those of chunks of actions have n steps or are left out, as in a data set.

    Args:
        num_steps: Steps n, at least 1.
        chunk: Actions of a transition, 1 or n; several lie side by side.

    Raises:
        UserError: If a number is below 1.
    """

    def __init__(self, num_steps: int, chunk: int = 1) -> None:
        check_range("[1, inf)", num_steps=num_steps)
        if chunk not in (1, num_steps):
            raise UserError(f"action_chunk must be 1 or num_steps {num_steps}, got {chunk}")
        self.num_steps, self.chunk = num_steps, chunk
        self._waiting: dict[Key, Tensor] = {}  # each (E, n - 1 or less, ...), the latest steps of each environment
        self._begun: Tensor | None = None  # (E, same), whether a step's transition is still to be returned

    def state_dict(self) -> dict[str, Any]:
        """The steps that wait."""
        waiting = {key if isinstance(key, str) else "/".join(key): held for key, held in self._waiting.items()}
        return {"waiting": waiting, "begun": self._begun}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device) -> None:
        """Continue with the steps that waited elsewhere.

        Args:
            state_dict: What ``state_dict`` returned there.
            device: Device of the steps that will follow.
        """
        places = {name: tuple(name.split("/")) if "/" in name else name for name in state_dict["waiting"]}
        self._waiting = {place: state_dict["waiting"][name].to(device) for name, place in places.items()}  # pyright: ignore
        begun = state_dict["begun"]
        self._begun = None if begun is None else begun.to(device)

    def fold(self, steps: TensorDictBase) -> TensorDict:
        """Take the next steps of each environment and return the transitions that they complete.

        Args:
            steps: TensorDict of batch size (E, T) with the keys of ``TRANSITION`` and ``DONE``; those of one
                environment follow those of the last call. Where a step ends its episode, the next one begins another.

        Returns:
            TensorDict of batch size (R,), R at least 0, with the keys of ``TRANSITION`` and ``LENGTH``: the action of
            shape (R, A), or (R, n A) in chunks; the reward of shape (R, n), zero beyond the length; the arrival state
            and its ``terminated`` those of the last step. The transitions of each environment are in the order of their
            first steps.
        """
        keys: tuple[Key, ...] = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION, TERMINATED, DONE)
        joined: dict[Key, Tensor] = {key: steps.get(key) for key in keys}
        begun = torch.ones_like(joined[DONE].squeeze(-1))
        if self._begun is not None:
            joined = {key: torch.cat([self._waiting[key], joined[key]], dim=1) for key in keys}
            begun = torch.cat([self._begun, begun], dim=1)
        length, complete = self._lengths(joined[DONE].squeeze(-1))
        first = max(0, begun.shape[1] - (self.num_steps - 1))
        # Copies, since a collector may write its next steps where these are.
        self._waiting = {key: joined[key][:, first:].clone() for key in keys}
        self._begun = ~complete[:, first:]
        return self._transitions(joined, length, begun & complete & (length >= self.chunk))

    def _lengths(self, done: Tensor) -> tuple[Tensor, Tensor]:
        """Steps of the transition that begins at each step, and whether all of them were taken; each (E, T)."""
        total = done.shape[1]
        length, ended = torch.zeros_like(done, dtype=torch.long), torch.zeros_like(done)
        for step in range(min(self.num_steps, total)):
            running = ~ended[:, : total - step]
            length[:, : total - step] += running
            ended[:, : total - step] |= done[:, step:]
        return length, ended | (length == self.num_steps)

    def _transitions(self, steps: dict[Key, Tensor], length: Tensor, returned: Tensor) -> TensorDict:
        environment, first = returned.nonzero(as_tuple=True)
        length = length[environment, first]
        last = first + length - 1
        offsets = torch.arange(self.num_steps, device=length.device)
        # Beyond the length any step will do: its reward is masked.
        places = torch.minimum(first[:, None] + offsets, last[:, None])
        rewards = steps[REWARD].squeeze(-1)[environment[:, None], places]
        return TensorDict(
            {
                OBSERVATION: steps[OBSERVATION][environment, first],
                ACTION: (
                    steps[ACTION][environment, first]
                    if self.chunk == 1
                    else steps[ACTION][environment[:, None], places].flatten(1)
                ),
                REWARD: rewards.masked_fill(offsets >= length[:, None], 0.0),
                NEXT_OBSERVATION: steps[NEXT_OBSERVATION][environment, last],
                TERMINATED: steps[TERMINATED][environment, last],
                LENGTH: length[:, None],
            },
            [len(length)],
        )
