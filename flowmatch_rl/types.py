"""Type aliases, and the abstract bases that several packages share."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A vector field, called as ``velocity(x, t, condition)``; returns the shape of ``x``."""

AverageVelocity: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Mean velocity, from t to ``t + duration``, of the flow line through x at t, called as
``average_velocity(x, t, duration, condition)``; returns the shape of ``x``."""

Time: TypeAlias = Tensor | float
"""A flow time in [0, 1], dimensionless: a number, or a tensor whose shape is a prefix of the shape of the points."""

LogDensityAndScore: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps points (..., D) to an unnormalised log-density (...) in nats and its gradient (..., D)."""

ActionValueAndGradient: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps actions (..., A) to values (...) and their gradients with respect to the action (..., A)."""

Prediction: TypeAlias = Literal["velocity", "data", "noise", "score"]
"""The quantity that a network predicts along a path."""


@dataclass(frozen=True)
class Policy(abc.ABC):
    """A policy, or a family of policies indexed by embedding vectors.

    Policies are frozen dataclasses, so that configurations and checkpoints can hold them.

    Attributes:
        is_random: Whether actions in equal states may differ. Where it is False, evaluations may follow one trajectory
            in place of several.
    """

    is_random: ClassVar[bool] = True

    @property
    @abc.abstractmethod
    def embedding_dim(self) -> int:
        """Dimension Z of the embedding that selects a member of the family; 0 for a single policy."""

    @abc.abstractmethod
    def embeddings(self, uniform: Tensor) -> Tensor:
        """Embeddings of members, drawn from the distribution the family is trained and evaluated on.

        Args:
            uniform: Uniform noise in [0, 1), shape (B, Z).

        Returns:
            Embeddings, shape (B, Z).
        """

    @abc.abstractmethod
    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions of the policy, or of the members that the embeddings select.

        Args:
            observation: Observations in the environment's units, shape (*batch, S).
            embedding: Embeddings of the members that act, shape (*batch, Z); None for a single policy.
            generator: Generator of a stochastic policy, on the device of the observation; the global one if None.

        Returns:
            Actions in [-1, 1], shape (*batch, A).

        Raises:
            ValueError: If the embedding is not of dimension Z.
        """

    def check_embedding(self, embedding: Tensor | None) -> None:
        """Raise unless an embedding has dimension Z; a single policy takes None or a dimension of 0.

        Args:
            embedding: Embedding, shape (*batch, Z), or None.

        Raises:
            ValueError: If its dimension is another one.
        """
        got = 0 if embedding is None else embedding.shape[-1]
        if got != self.embedding_dim:
            raise ValueError(f"expected an embedding of dimension {self.embedding_dim} for {self}, got {got}")


@dataclass(frozen=True)
class SinglePolicy(Policy, abc.ABC):
    """A single policy, without embeddings."""

    @property
    def embedding_dim(self) -> int:
        """0: a single policy has no embedding."""
        return 0

    def embeddings(self, uniform: Tensor) -> Tensor:
        """Embeddings without entries, shape (B, 0)."""
        return uniform


@dataclass(frozen=True)
class Reward(abc.ABC):
    """A reward that depends on the state, given in the units and by the column names of its environment."""

    @property
    @abc.abstractmethod
    def needed_columns(self) -> tuple[str, ...]:
        """Names of the entries of the state that the reward uses."""

    @abc.abstractmethod
    def of_columns(self, values: Tensor) -> Tensor:
        """Reward of the entries that it uses.

        Args:
            values: Entries of the state in the order of ``needed_columns``, shape (*batch, R).

        Returns:
            Reward, shape (*batch).
        """

    def evaluate(self, state: Tensor, columns: tuple[str, ...]) -> Tensor:
        """Reward of states with named entries.

        Args:
            state: States, shape (*batch, S).
            columns: Names of the S entries.

        Returns:
            Reward, shape (*batch).

        Raises:
            UserError: If the states lack an entry that the reward uses.
        """
        if missing := [name for name in self.needed_columns if name not in columns]:
            raise UserError(f"the reward {self} needs the column {missing[0]!r}; the states have {', '.join(columns)}")
        return self.of_columns(state[..., [columns.index(name) for name in self.needed_columns]])
