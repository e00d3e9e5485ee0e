"""Maps from the unbounded latent space of a path to the space of actions."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range


@dataclass(frozen=True)
class Squash(abc.ABC):
    """An elementwise, non-decreasing map from latent points u to actions."""

    @abc.abstractmethod
    def action(self, u: Tensor) -> Tensor:
        """Action of a latent point, same shape."""

    @abc.abstractmethod
    def latent(self, action: Tensor) -> Tensor:
        """Latent point of an action, same shape."""

    @abc.abstractmethod
    def log_jacobian(self, u: Tensor) -> Tensor:
        """Log-determinant of the derivative of ``action`` at latent points (..., D), shape (...).

        The log-density of an action is that of its latent point minus this.
        """

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

    @abc.abstractmethod
    def latent_gradient(self, action_gradient: Tensor, u: Tensor) -> Tensor:
        """Gradient with respect to u of a function of the action, by the chain rule.

        Args:
            action_gradient: Its gradient with respect to the action at ``action(u)``, shape (..., D).
            u: Latent points, shape (..., D).

        Returns:
            Gradient, shape (..., D).
        """


@dataclass(frozen=True)
class TanhSquash(Squash):
    """Hyperbolic tangent, onto the open box (-1, 1)^D.

    Args:
        limit: Largest magnitude of an action that ``latent`` inverts; larger ones are clipped to it. In (0, 1).

    Raises:
        UserError: If ``limit`` is outside (0, 1).
    """

    limit: float = 1.0 - 1e-4

    def __post_init__(self) -> None:
        check_range("(0, 1)", limit=self.limit)

    def action(self, u: Tensor) -> Tensor:
        """Action of a latent point, same shape."""
        return torch.tanh(u)

    def latent(self, action: Tensor) -> Tensor:
        """Latent point of an action, same shape."""
        return torch.atanh(action.clamp(-self.limit, self.limit))

    def log_jacobian(self, u: Tensor) -> Tensor:
        """``sum log sech^2(u)``, shape (...)."""
        # log sech^2(u) = 2 (log 2 - |u| - log(1 + exp(-2 |u|))): finite for every u, unlike log(1 - tanh^2).
        magnitude = u.abs()
        return 2.0 * (math.log(2.0) - magnitude - torch.log1p(torch.exp(-2.0 * magnitude))).sum(-1)

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``sum log sech^2(u)`` to the log-density, and its gradient ``-2 tanh(u)``."""
        a = torch.tanh(u)
        return action_value + self.log_jacobian(u), (1.0 - a.square()) * action_gradient - 2.0 * a

    def latent_gradient(self, action_gradient: Tensor, u: Tensor) -> Tensor:
        """The gradient times ``sech^2(u)``."""
        return (1.0 - torch.tanh(u).square()) * action_gradient


@dataclass(frozen=True)
class NoSquash(Squash):
    """The identity, for unbounded actions and for densities given on the latent space itself."""

    def action(self, u: Tensor) -> Tensor:
        """Action of a latent point, same shape."""
        return u

    def latent(self, action: Tensor) -> Tensor:
        """Latent point of an action, same shape."""
        return action

    def log_jacobian(self, u: Tensor) -> Tensor:
        """0, shape (...)."""
        return torch.zeros_like(u[..., 0])

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The arguments, unchanged."""
        return action_value, action_gradient

    def latent_gradient(self, action_gradient: Tensor, u: Tensor) -> Tensor:
        """The gradient, unchanged."""
        return action_gradient


@dataclass(frozen=True)
class ClipSquash(Squash):
    """Clips latent points to the box ``[-limit, limit]^D``, as diffusion policies without tanh do.

    The value is taken at the clipped action and no Jacobian is added, so that outside the box the log-density keeps
    the value of the nearest edge instead of falling to minus infinity. It is thus not the density over the box: the
    mass that a path's posterior has outside counts toward the edge, which draws policies to the bounds.
    ``TruncatedProposal`` stays inside the box.

    Args:
        limit: Half the side of the box, positive.

    Raises:
        UserError: If ``limit`` is not positive.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", limit=self.limit)

    def action(self, u: Tensor) -> Tensor:
        """The latent point, clipped, same shape."""
        return u.clamp(-self.limit, self.limit)

    def latent(self, action: Tensor) -> Tensor:
        """The action, clipped, same shape."""
        return action.clamp(-self.limit, self.limit)

    def log_jacobian(self, u: Tensor) -> Tensor:
        """Zero; the atoms that clipping leaves at the edges have no density."""
        return torch.zeros_like(u[..., 0])

    def pull_back(self, action_value: Tensor, action_gradient: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The value, unchanged, and the gradient, zero in dimensions that are clipped."""
        return action_value, torch.where(u.abs() <= self.limit, action_gradient, 0.0)

    def latent_gradient(self, action_gradient: Tensor, u: Tensor) -> Tensor:
        """The gradient, zero in dimensions that are clipped."""
        return torch.where(u.abs() <= self.limit, action_gradient, 0.0)
