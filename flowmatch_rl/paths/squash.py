"""Maps from the unbounded space a path lives in to the space of actions."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Squash(abc.ABC):
    """An elementwise, increasing map from latent points u to actions a."""

    @abc.abstractmethod
    def action(self, u: Tensor) -> Tensor:
        """Action of a latent point, same shape."""

    @abc.abstractmethod
    def latent(self, action: Tensor) -> Tensor:
        """Latent point of an action, same shape."""

    @abc.abstractmethod
    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density and its gradient in the latent space, for a log-density given over actions.

        Args:
            action_value: Unnormalised log-density over actions at ``action(u)``, nats, shape (...).
            action_gradient: Its gradient with respect to the action, shape (..., D).
            u: Latent points, shape (..., D).

        Returns:
            Unnormalised log-density over u, shape (...), and its gradient, shape (..., D).
        """


@dataclass(frozen=True)
class TanhSquash(Squash):
    """Hyperbolic tangent, onto the open box (-1, 1)^D.

    Args:
        limit: Largest magnitude of an action that ``latent`` inverts; larger ones are clipped to it. In (0, 1).

    Raises:
        ValueError: If ``limit`` is outside (0, 1).
    """

    limit: float = 1.0 - 1e-4

    def __post_init__(self) -> None:
        if not 0.0 < self.limit < 1.0:
            raise ValueError(f"limit must lie in (0, 1), got {self.limit}")

    def action(self, u: Tensor) -> Tensor:
        """Action of a latent point, same shape."""
        return torch.tanh(u)

    def latent(self, action: Tensor) -> Tensor:
        """Latent point of an action, same shape."""
        return torch.atanh(action.clamp(-self.limit, self.limit))

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``sum log sech^2(u)`` to the log-density, and its gradient ``-2 tanh(u)``."""
        a = torch.tanh(u)
        # log sech^2(u) = 2 (log 2 - |u| - log(1 + exp(-2 |u|))): finite for every u, unlike log(1 - tanh^2).
        magnitude = u.abs()
        log_jacobian = 2.0 * (math.log(2.0) - magnitude - torch.log1p(torch.exp(-2.0 * magnitude))).sum(-1)
        return action_value + log_jacobian, (1.0 - a.square()) * action_gradient - 2.0 * a


@dataclass(frozen=True)
class NoSquash(Squash):
    """The identity, for unbounded actions and for densities given on the latent space itself."""

    def action(self, u: Tensor) -> Tensor:
        """Action of a latent point, same shape."""
        return u

    def latent(self, action: Tensor) -> Tensor:
        """Latent point of an action, same shape."""
        return action

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The arguments, unchanged."""
        return action_value, action_gradient
