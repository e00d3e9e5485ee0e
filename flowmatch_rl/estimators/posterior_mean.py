"""The posterior mean of a path's end points for data known by an unnormalised density."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.proposals import ProductProposal, Proposal
from flowmatch_rl.paths import AffinePath, Squash
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import ActionValueAndGradient, LogDensityAndScore


@dataclass(frozen=True)
class PosteriorMean:
    """Estimated posterior means at x_t, with diagnostics.

    Attributes:
        x_0: Mean of the noise end point, shape (B, D).
        x_1: Mean of the data end point, shape (B, D).
        eta: Coefficient of the control variate, shape (B, D).
        effective_sample_size: ``1 / sum w^2``, between 1 and K, shape (B,).
        log_density_spread: Standard deviation of ``log p_1`` over the samples, nats, shape (B,).
    """

    x_0: Tensor
    x_1: Tensor
    eta: Tensor
    effective_sample_size: Tensor
    log_density_spread: Tensor


@dataclass(frozen=True)
class PosteriorMeanEstimator:
    """Self-normalised importance sampling of E[x_1 given x_t] with a Stein control variate.

    The noise is standard normal. Biased by O(1 / K) at a finite number of samples, whatever the coefficient.

    Args:
        num_samples: Samples K per state, at least 1.
        proposal: Where the end points are drawn.
        control_variate: Rule for the coefficient of the posterior score.

    Raises:
        ValueError: If ``num_samples`` is below 1.

    Reference:
        Li et al., arXiv:2601.08136. There the coefficient is Lambda = eta for x_0 and c = rho^2 eta for x_1.
    """

    num_samples: int = 64
    proposal: Proposal = field(default_factory=ProductProposal)
    control_variate: ControlVariate = field(default_factory=FisherControlVariate)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")

    def estimate(
        self, path: AffinePath, log_density_and_score: LogDensityAndScore, x_t: Tensor, t: Tensor, z: Tensor
    ) -> PosteriorMean:
        """Estimate the posterior means at points of a path.

        Args:
            path: Path from standard normal noise to the data.
            log_density_and_score: Maps x_1 of shape (B, K, D) to log p_1 up to a constant per state, (B, K), and its
                gradient, (B, K, D).
            x_t: Points on the path, shape (B, D).
            t: Flow time in (0, 1), shape (B,).
            z: Standard normal noise, shape (B, K, D).

        Returns:
            Posterior means and diagnostics.

        Raises:
            ValueError: If a shape is not as stated.
        """
        check_shape("z", z, (x_t.shape[0], self.num_samples, x_t.shape[1]))
        t = append_dims(t, like=x_t[:, 0]).reshape(-1, 1, 1)  # (B, 1, 1)
        alpha, sigma = path.schedule.alpha(t), path.schedule.sigma(t)
        rho = sigma / alpha
        x_1, x_0, correction = self.proposal.draw(z, x_t[:, None], alpha, sigma)  # (B, K, D)
        log_density, score = log_density_and_score(x_1)
        check_shape("log density", log_density, tuple(z.shape[:2]))
        check_shape("score", score, tuple(z.shape))
        # Log-weights span thousands of nats: never in half precision.
        log_density, score = log_density.to(x_t.dtype), score.to(x_t.dtype)
        weights = torch.softmax(log_density + correction, dim=1)[..., None]  # (B, K, 1)
        r = x_0 + rho * score
        mean_r = (weights * r).sum(1)
        eta = self.control_variate.coefficient(weights, x_0, r, rho[:, 0])
        shift = eta * mean_r
        return PosteriorMean(
            x_0=(weights * x_0).sum(1) - shift,
            x_1=(weights * x_1).sum(1) + rho[:, 0] * shift,
            eta=eta,
            effective_sample_size=1.0 / weights.square().sum((1, 2)),
            log_density_spread=log_density.std(dim=1, correction=0),
        )


def boltzmann_density(
    value_and_gradient: ActionValueAndGradient, temperature: Tensor | float, squash: Squash
) -> LogDensityAndScore:
    """The density proportional to ``exp(Q / temperature)`` over actions, pulled back to the latent space of a path.

    Args:
        value_and_gradient: Action values Q (...) and their gradients (..., D) at actions (..., D).
        temperature: Temperature in units of the return, positive.
        squash: Map from latent points to actions; its Jacobian enters the density and the gradient.

    Returns:
        Function from latent points (..., D) to the unnormalised log-density (...) and its gradient (..., D).
    """

    def density(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_gradient(squash.action(u))
        return squash.pull_back(value.to(u.dtype) / temperature, gradient.to(u.dtype) / temperature, u)

    return density
