"""Policies that are formulas of the observation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.types import Policy, SinglePolicy


@dataclass(frozen=True)
class LinearPolicy(SinglePolicy):
    """The deterministic policy ``a = gain s + bias``.

    Actions are not clamped, since a clamp would leave the linear-Gaussian family. The gain should keep them in [-1, 1]
    at the states that matter.

    Args:
        gain: Matrix of A rows of S numbers, action per unit of the state.
        bias: Action at the origin, A numbers; None for zeros.

    Raises:
        UserError: If the rows are empty or differ in length, or the bias does not fit.
    """

    is_random: ClassVar = False
    gain: list[list[float]]
    bias: list[float] | None = None

    def __post_init__(self) -> None:
        lengths = {len(row) for row in self.gain}
        if len(lengths) != 1 or lengths == {0}:
            raise UserError(f"gain must be rows of one length, at least 1, got lengths {sorted(lengths)}")
        if self.bias is not None and len(self.bias) != len(self.gain):
            raise UserError(f"bias must have {len(self.gain)} entries, one per row of gain, got {len(self.bias)}")

    def matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Gain, shape (A, S), and bias, shape (A,), of the type and on the device of ``like``."""
        bias = [0.0] * len(self.gain) if self.bias is None else self.bias
        return like.new_tensor(self.gain), like.new_tensor(bias)

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions, shape (*batch, A), for observations of shape (*batch, S)."""
        self.check_embedding(embedding)
        gain, bias = self.matrices(observation)
        check_shape("observation", observation, (*observation.shape[:-1], gain.shape[1]))
        return observation @ gain.T + bias


@dataclass(frozen=True)
class ConstantPolicy(SinglePolicy):
    """The policy that always takes the same action.

    Args:
        action: The action, A numbers in [-1, 1].

    Raises:
        UserError: If there are none, or one is out of its range.
    """

    is_random: ClassVar = False
    action: list[float]

    def __post_init__(self) -> None:
        if not self.action or not all(-1.0 <= value <= 1.0 for value in self.action):
            raise UserError(f"action must be numbers in [-1, 1], at least one, got {self.action}")

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The action, shape (*batch, A)."""
        self.check_embedding(embedding)
        return observation.new_tensor(self.action).expand(*observation.shape[:-1], -1)


@dataclass(frozen=True)
class RandomPolicy(SinglePolicy):
    """Actions uniform on [-1, 1]^A, whatever the observation: the usual way to collect data that cover the actions.

    Args:
        action_dim: Dimension A, at least 1.

    Raises:
        UserError: If it is less.
    """

    action_dim: int

    def __post_init__(self) -> None:
        check_range("[1, inf)", action_dim=self.action_dim)

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Uniform actions, shape (*batch, A)."""
        self.check_embedding(embedding)
        uniform = torch.rand(
            *observation.shape[:-1],
            self.action_dim,
            dtype=observation.dtype,
            device=observation.device,
            generator=generator,
        )
        return 2.0 * uniform - 1.0


@dataclass(frozen=True)
class PointGoalPolicy(Policy):
    """The family of feedback policies that bring a body to a goal and hold it there (proportional-derivative control).

    The observation is the position, A numbers, then its velocity, A numbers; the action pushes along the same axes:
    ``a = gain (goal - position) - damping velocity``, clamped to [-1, 1]. The embedding of a member is its goal divided
    by ``half_width`` (Z = A).

    Args:
        gain: Action per distance from the goal, positive.
        damping: Action per unit of the velocity, at least 0.
        half_width: Half the side of the cube around the origin in which goals are uniform, positive.
        action_dim: Dimension A, at least 1.

    Raises:
        UserError: If a number is out of its range.
    """

    is_random: ClassVar = False
    gain: float
    damping: float
    half_width: float
    action_dim: int = 2

    def __post_init__(self) -> None:
        check_range("(0, inf)", gain=self.gain, half_width=self.half_width)
        check_range("[0, inf)", damping=self.damping)
        check_range("[1, inf)", action_dim=self.action_dim)

    @property
    def embedding_dim(self) -> int:
        """The goal's position."""
        return self.action_dim

    def embeddings(self, uniform: Tensor) -> Tensor:
        """Goals uniform over the cube, in units of ``half_width``, shape (B, A)."""
        return 2.0 * uniform - 1.0

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions, shape (*batch, A), for observations of shape (*batch, 2 A) and goals of shape (*batch, A)."""
        if embedding is None:
            raise ValueError(f"expected goals of shape (*batch, {self.action_dim}), got no embedding")
        check_shape("observation", observation, (*observation.shape[:-1], 2 * self.action_dim))
        check_shape("embedding", embedding, (*observation.shape[:-1], self.action_dim))
        position, velocity = observation.split(self.action_dim, -1)
        offset = self.half_width * embedding.to(observation) - position
        return (self.gain * offset - self.damping * velocity).clamp(-1.0, 1.0)
