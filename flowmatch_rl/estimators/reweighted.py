"""The pair that a point was made of, weighted."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class ReweightedEndpoints(EndpointEstimator):
    """The pair of endpoints itself, with the weight ``p_1(x_1)`` normalised over the batch: mirror descent.

    With x_1 from a policy and ``p_1 = exp(Q / temperature)`` relative to it, the weighted regression learns the flow
    to the product of the two, a step of mirror descent, instead of the Boltzmann density itself. One evaluation per
    state and no gradient. The weights compare states with one another, so that a state of high value counts more.

    Args:
        limit: Largest distance of ``log p_1`` from its mean over the batch, nats, positive; None leaves it as it is.

    Raises:
        ValueError: If ``limit`` is not positive.

    Reference:
        Ma et al., arXiv:2502.00361 (diffusion policy mirror descent).
    """

    needs_jacobian = False

    num_samples: int = field(default=0, init=False, repr=False)
    limit: float | None = None

    def __post_init__(self) -> None:
        check_range("(0, inf)", limit=self.limit)

    @property
    def num_draws(self) -> int:
        """1."""
        return 1

    @property
    def compares_points(self) -> bool:
        """True."""
        return True

    @property
    def needs_score(self) -> bool:
        """Only values are used."""
        return False

    def check(self, path: AffinePath, source: Source) -> None:
        """Any path and any source will do."""

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """The pair of the points and its weights."""
        x_1 = points.x_1
        check_shape("z", z, (x_1.shape[0], 0, source.noise_dim(x_1.shape[1])))
        log_density, _ = log_density_and_score(x_1[:, None])
        check_shape("log density", log_density, (x_1.shape[0], 1))
        exponent = log_density[:, 0].to(x_1.dtype)
        if self.limit is not None:
            exponent = (exponent - exponent.mean()).clamp(-self.limit, self.limit)
        probability = torch.softmax(exponent, dim=0)
        one = torch.ones_like(probability)
        return EndpointEstimate(
            x_0=points.x_0,
            x_1=x_1,
            weight=len(probability) * probability,
            eta=torch.zeros_like(x_1),
            effective_sample_size=one / probability.square().sum(),
            log_density_spread=one * log_density.to(x_1.dtype).std(correction=0),
        )
