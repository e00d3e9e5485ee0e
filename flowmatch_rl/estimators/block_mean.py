"""Posterior means of the endpoints by importance sampling of a few coordinates at a time."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.estimators.control_variates import ControlVariate, FisherControlVariate
from flowmatch_rl.estimators.proposals import ProductProposal, Proposal
from flowmatch_rl.estimators.weighted import mean_estimate
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class BlockMeanEstimator(EndpointEstimator):
    """Importance sampling of E[x_1 given x_t] block by block, for actions of many dimensions.

    The weights of samples that differ in all coordinates collapse with the dimension. Here the first sample is the
    endpoint that the point was made of, and every other one differs from it in one block of coordinates, drawn from the
    proposal; the blocks are drawn at random for each state. The mean of a coordinate is that over the endpoint and
    the samples of its own block. All samples are evaluated at once, so that an estimate costs as much as one of
    ``PosteriorMeanEstimator`` with as many samples.

    Given a sample of the posterior, the weighted samples of a block leave the posterior invariant (iterated importance
    resampling, given the other coordinates). Where the endpoints are samples of the policy, the estimate is therefore
    unbiased for any number of samples once the policy has the distribution it is trained toward. Before that it moves
    from the endpoint toward the target, a few coordinates at a time. That is fast where coordinates have their own
    modes, and slow where they depend on each other. Modes that differ in several coordinates keep whatever
    probabilities they have: policies were measured to lose all but one.

    Args:
        num_samples: Evaluations per state, the endpoint among them, at least 2.
        num_blocks: Blocks that the coordinates are divided into, at least 1; as many as there are samples or
            coordinates at most, and this many if None. With one block all coordinates are drawn at once.
        proposal: Where the coordinates are drawn from, each independently of the others.
        control_variate: Rule for the coefficient of the posterior score. The default shares it among states of like
            flow time, since each coordinate has few samples.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Andrieu, Lee and Vihola, Bernoulli 24 (2018), for iterated importance resampling.
    """

    needs_jacobian = True

    num_samples: int = 16
    num_blocks: int | None = None
    proposal: Proposal = field(default_factory=ProductProposal)
    control_variate: ControlVariate = field(default_factory=lambda: FisherControlVariate(num_bins=20))

    def __post_init__(self) -> None:
        check_range("[2, inf)", num_samples=self.num_samples)
        check_range("[1, inf)", num_blocks=self.num_blocks)

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
        """Refuse a source that the proposal does not know, and proposals that draw coordinates together."""
        self.proposal.check(source)
        if not (self.proposal.covers_space and self.proposal.is_product(source)):
            raise UserError(
                "BlockMeanEstimator needs a proposal that draws each coordinate by itself and covers the whole space, "
                f"got {self.proposal} with {source}: use ProductProposal"
            )
        if self.needs_score and not source.is_smooth:
            raise UserError(
                f"{type(self.control_variate).__name__} needs a source with a smooth density everywhere, got {source}: "
                "use NoControlVariate"
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
        """Weighted means over the samples of each block, minus the weighted mean score."""
        x_t = points.x_t
        size, dim = x_t.shape
        check_shape("z", z, (size, self.num_samples, source.noise_dim(dim)))
        t = append_dims(points.t, like=x_t[:, 0]).expand(size)
        alpha, sigma = (c[:, None, None] for c in (path.schedule.alpha(t), path.schedule.sigma(t)))
        drawn = self._drawn(z[:, 0, :dim])
        x_0, x_1 = self.proposal.draw(z[:, 1:], source, x_t[:, None], alpha, sigma)
        # Noise of all samples by one formula: rounding must not make the endpoint's differ.
        x_1 = torch.cat([points.x_1[:, None], torch.where(drawn, x_1, points.x_1[:, None])], dim=1)
        x_0 = (x_t[:, None] - alpha * x_1) / sigma
        log_density, score = log_density_and_score(x_1)
        check_shape("log density", log_density, tuple(x_1.shape[:2]))
        check_shape("score", score, tuple(x_1.shape))
        log_density, score = log_density.to(x_t.dtype), score.to(x_t.dtype)
        # The terms of the coordinates that are not drawn are common to the samples that are weighed together.
        log_weight = log_density + self.proposal.correction(x_0, x_1, source, x_t[:, None], alpha, sigma)
        counts = torch.cat([torch.ones_like(drawn[:, :1]), drawn], dim=1)
        weights = log_weight[..., None].masked_fill(~counts, -math.inf).softmax(1)  # (B, K, D)
        rho = sigma / alpha
        r = rho * score - source.score(x_0)
        return mean_estimate(weights, x_0, x_1, log_density, r, rho[:, 0], t, self.control_variate)

    def _drawn(self, noise: Tensor) -> Tensor:
        """Which coordinates each sample but the endpoint draws, shape (B, K - 1, D).

        Args:
            noise: Normal noise whose order puts the coordinates in blocks, shape (B, D).
        """
        number, dim = self.num_samples - 1, noise.shape[1]
        blocks = min(number, dim, self.num_blocks or dim)
        block_of_coordinate = noise.argsort(1).argsort(1) * blocks // dim  # (B, D)
        block_of_sample = torch.arange(number, device=noise.device) * blocks // number
        return block_of_coordinate[:, None] == block_of_sample[:, None]
