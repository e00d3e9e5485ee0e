"""Posterior means of the endpoints by importance sampling."""

from dataclasses import dataclass, field

from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.proposals import ProductProposal, Proposal
from flowmatch_rl.estimators.weighted import weighted_estimate
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class PosteriorMeanEstimator(EndpointEstimator):
    """Self-normalised importance sampling of E[x_1 given x_t] with a Stein control variate.

    Biased by O(1 / K) at a finite number of samples, whatever the coefficient.

    Args:
        num_samples: Samples K per state, at least 1.
        proposal: Where the endpoints are drawn from.
        control_variate: Rule for the coefficient of the posterior score.

    Raises:
        ValueError: If ``num_samples`` is below 1.

    Reference:
        Li et al., arXiv:2601.08136. There the coefficient is Lambda = eta for x_0 and c = rho^2 eta for x_1.
    """

    needs_jacobian = True

    num_samples: int = 64
    proposal: Proposal = field(default_factory=ProductProposal)
    control_variate: ControlVariate = field(default_factory=FisherControlVariate)

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_samples=self.num_samples)

    @property
    def num_draws(self) -> int:
        """1."""
        return 1

    @property
    def compares_points(self) -> bool:
        """False."""
        return False

    @property
    def needs_score(self) -> bool:
        """Whether the control variate uses it."""
        return self.control_variate.needs_score

    def check(self, path: AffinePath, source: Source) -> None:
        """Refuse a source that the proposal does not know, and control variates at the edge of a support."""
        self.proposal.check(source)
        if self.needs_score and not source.is_smooth:
            raise UserError(
                f"{type(self.control_variate).__name__} needs a source with a smooth density everywhere, got {source}: "
                "use NoControlVariate"
            )
        if self.needs_score and not self.proposal.covers_space:
            raise UserError(
                f"{type(self.control_variate).__name__} needs a proposal that covers the whole space, got "
                f"{self.proposal}: use NoControlVariate"
            )

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """Weighted means of the samples of the endpoints, minus the weighted mean score."""
        x_t = points.x_t
        check_shape("z", z, (x_t.shape[0], self.num_samples, source.noise_dim(x_t.shape[1])))
        t = append_dims(points.t, like=x_t[:, 0]).expand(x_t.shape[0])
        alpha, sigma = (c[:, None, None] for c in (path.schedule.alpha(t), path.schedule.sigma(t)))
        rho = sigma / alpha
        x_0, x_1 = self.proposal.draw(z, source, x_t[:, None], alpha, sigma)  # (B, K, D)
        log_density, score = log_density_and_score(x_1)
        check_shape("log density", log_density, tuple(x_1.shape[:2]))
        check_shape("score", score, tuple(x_1.shape))
        # Log-weights span thousands of nats: never in half precision.
        log_density, score = log_density.to(x_t.dtype), score.to(x_t.dtype)
        correction = self.proposal.correction(x_0, x_1, source, x_t[:, None], alpha, sigma)
        r = rho * score - source.score(x_0)
        return weighted_estimate(x_0, x_1, log_density, correction, r, rho[:, 0], t, self.control_variate)
