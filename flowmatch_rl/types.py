"""Types that every room of the package shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

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
class Transition:
    """A batch of one-step transitions.

    Attributes:
        observation: State the action was taken in, shape (B, S).
        action: Action in [-1, 1], shape (B, A).
        reward: Reward of the step, shape (B,).
        next_observation: State arrived at, shape (B, S).
        terminated: Whether the arrival state is terminal, boolean, shape (B,). A time limit is not a termination.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor


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
