"""Types that every room of the package shares."""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A vector field, called as ``velocity(x, t, condition)``; returns the shape of ``x``."""

AverageVelocity: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Mean velocity of a flow line, called as ``average_velocity(x, t, duration, condition)``: it passes x at t and is
followed up to ``t + duration``; returns the shape of ``x``."""

LogDensityAndScore: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps points (..., D) to an unnormalised log-density (...) in nats and its gradient (..., D)."""

ActionValueAndGradient: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps actions (..., A) to values (...) and their gradients with respect to the action (..., A)."""

Prediction: TypeAlias = Literal["velocity", "data", "noise", "score"]
"""The quantity that a network predicts along a path."""


class RunError(Exception):
    """A run that cannot go on, for a reason its user can act on; the command line prints it as one line."""


@dataclass(frozen=True)
class Policy(abc.ABC):
    """A policy, or a family of policies whose members are named by vectors.

    Policies are frozen dataclasses, so that configurations and checkpoints can hold them.
    """

    @property
    @abc.abstractmethod
    def embedding_dim(self) -> int:
        """Dimension Z of the vector that names a member of a family; 0 for a single policy."""

    @abc.abstractmethod
    def embeddings(self, uniform: Tensor) -> Tensor:
        """Members of the family, drawn from the law they are trained and evaluated on.

        Args:
            uniform: Uniform noise in [0, 1), shape (B, Z).

        Returns:
            Embeddings, shape (B, Z).
        """

    @abc.abstractmethod
    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Actions.

        Args:
            observation: Observations in the environment's units, shape (*batch, S).
            embedding: Names of the members that act, shape (*batch, Z); None for a single policy.
            generator: Noise of a stochastic policy, on the device of the observation; the global one if None.

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
            ValueError: If it does not fit.
        """
        got = 0 if embedding is None else embedding.shape[-1]
        if got != self.embedding_dim:
            raise ValueError(f"expected an embedding of dimension {self.embedding_dim} for {self}, got {got}")


@dataclass(frozen=True)
class SinglePolicy(Policy, abc.ABC):
    """A policy that is no family."""

    @property
    def embedding_dim(self) -> int:
        """There is nothing to name: 0."""
        return 0

    def embeddings(self, uniform: Tensor) -> Tensor:
        """Embeddings without entries, shape (B, 0)."""
        return uniform


@dataclass(frozen=True)
class Reward(abc.ABC):
    """A reward for being in a state, in the units and by the column names of its environment."""

    @property
    @abc.abstractmethod
    def needed_columns(self) -> tuple[str, ...]:
        """Names of the entries of the state that the reward looks at."""

    @abc.abstractmethod
    def of_columns(self, values: Tensor) -> Tensor:
        """Reward.

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
            ValueError: If the states lack an entry that the reward looks at.
        """
        if missing := [name for name in self.needed_columns if name not in columns]:
            raise ValueError(f"the reward {self} needs the column {missing[0]!r}; there are {', '.join(columns)}")
        return self.of_columns(state[..., [columns.index(name) for name in self.needed_columns]])


@dataclass(frozen=True)
class Transition:
    """A batch of transitions of up to n steps each.

    Attributes:
        observation: State the first action was taken in, shape (B, S).
        action: First action, in [-1, 1], shape (B, A).
        rewards: Rewards of the steps, not discounted, shape (B, n); what lies beyond ``length`` is padding.
        next_observation: State arrived at after the last step, shape (B, S).
        terminated: Whether the arrival state is terminal, boolean, shape (B,). A time limit is not a termination.
        length: Steps taken, in 1, ..., n, integer, shape (B,); fewer than n at the end of an episode.
    """

    observation: Tensor
    action: Tensor
    rewards: Tensor
    next_observation: Tensor
    terminated: Tensor
    length: Tensor

    @property
    def reward(self) -> Tensor:
        """Reward of the first step, shape (B,)."""
        return self.rewards[:, 0]


@dataclass(frozen=True)
class Segment:
    """A batch of steps that follow each other, n at most, in the units of the environment.

    Attributes:
        observation: State the first action was taken in, shape (B, S).
        action: First action, in [-1, 1], shape (B, A).
        arrivals: States at times 1, ..., n, shape (B, n, S).
        terminated: Whether they are terminal, boolean, shape (B, n).
        length: How many of the n steps were taken, in 1, ..., n, integer, shape (B,); what lies beyond is padding.
        next_action: Action at time ``length`` in the data, shape (B, A), or None where it is unknown.
        embedding: Member of a family of policies that acted, shape (B, Z); Z is 0 for a single policy.
        future: A state of the occupancy, from the same trajectory, shape (B, S), or None.
    """

    observation: Tensor
    action: Tensor
    arrivals: Tensor
    terminated: Tensor
    length: Tensor
    next_action: Tensor | None
    embedding: Tensor
    future: Tensor | None


@dataclass(frozen=True)
class SegmentNeeds:
    """What a module wants of the segments it is trained on.

    Attributes:
        num_steps: Steps n of a segment, at least 1.
        next_action: Whether the action after the segment must be known.
        future_discounts: Maps uniform noise (B,) to the discounts (B,) of occupancies that a state of the same
            trajectory is drawn from; None where no such state is wanted.
    """

    num_steps: int = 1
    next_action: bool = False
    future_discounts: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Rollouts:
    """Where trajectories of a policy lead from N states, in the units of the environment.

    Attributes:
        observation: States at time 0, shape (N, S).
        action: Actions of the policy there, shape (N, A).
        embedding: Members of a family of policies that act, shape (N, Z).
        states: States at times 1, ..., T of R trajectories each, shape (N, R, T, S), or None where there are none;
            a terminal state is repeated.
        length: Steps of each trajectory that are known, shape (N, R), or None; T for those that terminated.
        ended: Whether each trajectory had terminated by then, boolean, shape (N, R, T), or None.
    """

    observation: Tensor
    action: Tensor
    embedding: Tensor
    states: Tensor | None
    length: Tensor | None
    ended: Tensor | None


@dataclass(frozen=True)
class Samples:
    """A batch of standardised samples.

    Attributes:
        sample: Samples, shape (B, D).
        condition: What they are conditioned on, shape (B, C), or None.
        source: Points that the samples are paired with at t = 0, shape (B, D), or None to draw them.
    """

    sample: Tensor
    condition: Tensor | None = None
    source: Tensor | None = None


@dataclass(frozen=True)
class TableSchema:
    """Columns of a table of samples, and the units they are standardised by.

    A condition is the vector of the standardised condition columns followed by one indicator per class of each class
    column, in the order of ``classes``.

    Attributes:
        columns: Names of the D sample columns.
        shift: Mean of each, in its own unit.
        scale: Standard deviation of each, in its own unit, positive.
        condition_columns: Names of the continuous condition columns.
        condition_shift: Mean of each.
        condition_scale: Standard deviation of each, positive.
        class_columns: Names of the columns that hold classes.
        classes: The classes of each of them, as text, sorted.
    """

    columns: tuple[str, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    condition_columns: tuple[str, ...] = ()
    condition_shift: tuple[float, ...] = ()
    condition_scale: tuple[float, ...] = ()
    class_columns: tuple[str, ...] = ()
    classes: tuple[tuple[str, ...], ...] = ()

    @property
    def sample_dim(self) -> int:
        """Dimension D of a sample."""
        return len(self.columns)

    @property
    def condition_dim(self) -> int:
        """Dimension C of a condition."""
        return len(self.condition_columns) + sum(map(len, self.classes))

    @property
    def log_volume(self) -> float:
        """Log-density of standardised samples minus that of samples in their own units, nats."""
        return sum(math.log(scale) for scale in self.scale)

    def standardise(self, sample: Tensor) -> Tensor:
        """Standardised samples, float64, shape (*batch, D), of samples in their own units."""
        shift, scale = self._units(sample)
        return (sample.double() - shift) / scale

    def restore(self, sample: Tensor) -> Tensor:
        """Samples in their own units, float64, shape (*batch, D), of standardised ones."""
        shift, scale = self._units(sample)
        return sample.double() * scale + shift

    def condition(self, values: Mapping[str, Any]) -> Tensor:
        """Conditions as models take them.

        Args:
            values: B values of each condition and class column, by name; classes as text or anything whose text they
                are.

        Returns:
            Conditions, float64, shape (B, C).

        Raises:
            ValueError: If a class is not among those known.
        """
        units = zip(self.condition_columns, self.condition_shift, self.condition_scale, strict=True)
        parts = [
            ((torch.as_tensor(values[name], dtype=torch.float64) - shift) / scale)[:, None]
            for name, shift, scale in units
        ]
        for name, levels in zip(self.class_columns, self.classes, strict=True):
            known = {level: i for i, level in enumerate(levels)}
            texts = [str(value) for value in values[name]]
            if unknown := [text for text in texts if text not in known]:
                raise ValueError(f"column {name!r} holds the class {unknown[0]!r}; known are {', '.join(levels)}")
            indices = torch.tensor([known[text] for text in texts])
            parts.append(torch.nn.functional.one_hot(indices, len(levels)).double())
        return torch.cat(parts, dim=1)

    def restore_condition(self, condition: Tensor) -> dict[str, list[float] | list[str]]:
        """Condition columns in their own units and class columns as text.

        Args:
            condition: Conditions, shape (B, C).

        Returns:
            B values by column.
        """
        values: dict[str, list[float] | list[str]] = {}
        count = len(self.condition_columns)
        columns = condition[:, :count].double().T
        units = zip(self.condition_columns, columns, self.condition_shift, self.condition_scale, strict=True)
        for name, column, shift, scale in units:
            values[name] = (column * scale + shift).tolist()
        indicators = condition[:, count:].split([len(levels) for levels in self.classes], dim=1)
        for name, levels, block in zip(self.class_columns, self.classes, indicators, strict=True):
            values[name] = [levels[i] for i in block.argmax(1).tolist()]
        return values

    def _units(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-1] != self.sample_dim:
            raise ValueError(f"expected {self.sample_dim} columns ({', '.join(self.columns)}), got {like.shape[-1]}")
        shift, scale = (
            torch.tensor(units, dtype=torch.float64, device=like.device) for units in (self.shift, self.scale)
        )
        return shift, scale
