"""The score of the data in place of the score of the path."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.paths import AffinePath, PathPoints, Source
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class PointScoreEstimator(EndpointEstimator):
    """Takes ``grad log p_1`` at x_t itself for the score of the path there: Q-score matching.

    Exact only where the path ends. Earlier on the path it is the score of the data, not of the noised data, so that
    the trained policy has no distribution known in closed form. Cheap: one gradient per state and no samples.

    Reference:
        Psenka et al., arXiv:2312.11752.
    """

    needs_jacobian = True

    num_samples: int = field(default=0, init=False, repr=False)

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
        """It is all that is used."""
        return True

    def check(self, path: AffinePath, source: Source) -> None:
        """Refuse a source that is not standard normal: the score then says nothing about x_0."""
        if not source.is_standard_normal:
            raise UserError(f"PointScoreEstimator needs a standard normal source, got {source}")

    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """Pair (x_0, x_1), ``-sigma grad log p_1(x_t)`` for x_0 and what follows for x_1."""
        x_t = points.x_t
        check_shape("z", z, (x_t.shape[0], 0, source.noise_dim(x_t.shape[1])))
        t = append_dims(points.t, like=x_t)
        log_density, score = log_density_and_score(x_t[:, None])
        check_shape("log density", log_density, (x_t.shape[0], 1))
        check_shape("score", score, (x_t.shape[0], 1, x_t.shape[1]))
        x_0 = -path.schedule.sigma(t) * score[:, 0].to(x_t.dtype)
        one = torch.ones_like(x_t[:, 0])
        return EndpointEstimate(
            x_0=x_0,
            x_1=(x_t - path.schedule.sigma(t) * x_0) / path.schedule.alpha(t),
            weight=one,
            eta=torch.ones_like(x_t),
            effective_sample_size=one,
            log_density_spread=torch.zeros_like(one),
        )
