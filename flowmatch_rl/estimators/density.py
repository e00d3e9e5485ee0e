"""The Boltzmann density of an action value, in the space that a path lives in."""

from torch import Tensor

from flowmatch_rl.paths import Squash
from flowmatch_rl.types import ActionValueAndGradient, LogDensityAndScore


def boltzmann_density(
    value_and_gradient: ActionValueAndGradient, temperature: Tensor | float, squash: Squash, jacobian: bool = True
) -> LogDensityAndScore:
    """The density proportional to ``exp(Q / temperature)`` over actions, pulled back to the latent space of a path.

    Args:
        value_and_gradient: Action values Q (...) and their gradients (..., D) at actions (..., D).
        temperature: Temperature in units of the return, positive.
        squash: Map from latent points to actions.
        jacobian: Whether the Jacobian of the squash enters the density and its gradient, which makes it a density per
            volume of the latent space; without it the density is relative to a distribution of latent points, as
            ``EndpointEstimator.needs_jacobian`` tells.

    Returns:
        Function from latent points (..., D) to the unnormalised log-density (...) and its gradient (..., D).
    """

    def density(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(squash.action(u))
        value, gradient = value.to(u.dtype) / temperature, gradient.to(u.dtype) / temperature
        if jacobian:
            return squash.pull_back(value, gradient, u)
        return value, squash.latent_gradient(gradient, u)

    return density
