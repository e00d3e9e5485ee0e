"""Markov decision processes as batched functions, whose futures are known exactly or sampled in large numbers."""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.types import Policy


@dataclass(frozen=True)
class Process(abc.ABC):
    """A Markov decision process as pure functions of batches; noise is an argument.

    States are fully observed. Processes are frozen dataclasses, so that configurations can hold them.

    Attributes:
        label: Short name, for titles and run names.
    """

    label: ClassVar[str]

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Names of the S entries of the state."""

    @property
    @abc.abstractmethod
    def action_dim(self) -> int:
        """Dimension A of the action, each entry in [-1, 1]."""

    @property
    @abc.abstractmethod
    def noise_dim(self) -> int:
        """Standard normal numbers that a start or a step takes, at least 1."""

    @abc.abstractmethod
    def start(self, noise: Tensor) -> Tensor:
        """Initial states, shape (*batch, S), for standard normal noise of shape (*batch, noise_dim)."""

    @abc.abstractmethod
    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            state: States, shape (*batch, S).
            action: Actions in [-1, 1], shape (*batch, A).
            noise: Standard normal, shape (*batch, noise_dim).

        Returns:
            Next states, shape (*batch, S), and whether they are terminal, boolean, shape (*batch).
        """

    def futures(
        self,
        policy: Policy,
        state: Tensor,
        action: Tensor,
        noise: Tensor,
        embedding: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """States after a first action, the later actions a policy's; a terminal state is never left.

        Args:
            policy: The policy.
            state: States at time 0, shape (*batch, S).
            action: Actions at time 0, shape (*batch, A).
            noise: Standard normal, one row per step, shape (T, *batch, noise_dim).
            embedding: Members of the family that act, shape (*batch, Z), or None.
            generator: Noise of a stochastic policy.

        Returns:
            States at times 1, ..., T, shape (T, *batch, S), and whether the process had ended by then, boolean,
            shape (T, *batch).
        """
        states, ends = [], []
        ended = torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)
        for row in noise:
            moved, terminal = self.step(state, action, row)
            state = torch.where(ended[..., None], state, moved)
            ended = ended | terminal
            states.append(state)
            ends.append(ended)
            action = policy.act(state, embedding, generator)
        return torch.stack(states), torch.stack(ends)
