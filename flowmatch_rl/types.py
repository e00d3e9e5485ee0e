"""Types that every room of the package shares."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A vector field, called as ``velocity(x, t, condition)``; returns the shape of ``x``."""

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
