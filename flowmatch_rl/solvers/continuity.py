"""The continuity equation, which says whether a velocity field carries a density."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.solvers.divergence import ExactDivergence
from flowmatch_rl.types import Velocity


@dataclass(frozen=True)
class ContinuityTerms:
    """The terms of ``d density / dt + div(density velocity) = 0`` at points.

    Attributes:
        density: Density per volume, shape (*batch).
        rate: Its derivative with respect to flow time where the point stays, shape (*batch).
        flux: Density times velocity, shape (*batch, D).
        divergence: Divergence of the flux, shape (*batch): the rate at which probability leaves the point.
    """

    density: Tensor
    rate: Tensor
    flux: Tensor
    divergence: Tensor

    @property
    def residual(self) -> Tensor:
        """``rate + divergence``, shape (*batch): zero where the velocity carries the density."""
        return self.rate + self.divergence


def continuity_terms(
    log_density: Callable[[Tensor, Tensor], Tensor],
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    condition: Tensor | None = None,
) -> ContinuityTerms:
    """Both sides of the continuity equation, each by a derivative of its own.

    Args:
        log_density: Log-density, nats, called as ``log_density(x, t)``; maps (*batch, D) and (*batch) to (*batch).
        velocity: Field, called as ``velocity(x, t, condition)``; points must not influence each other.
        x: Points, shape (*batch, D).
        t: Flow time in [0, 1], dimensionless, shape (*batch).
        condition: Condition of the field, or None.

    Returns:
        The terms.
    """

    def density(x: Tensor, t: Tensor) -> Tensor:
        return log_density(x, t).exp()

    def flux(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return density(x, t)[..., None] * velocity(x, t, condition)

    value, rate = torch.func.jvp(lambda time: density(x, time), (t,), (torch.ones_like(t),))[:2]
    return ContinuityTerms(value, rate, *ExactDivergence().evaluate(flux, x, t, condition, None))
