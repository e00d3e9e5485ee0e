"""What estimators of a path's endpoints take and return."""

import abc
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowmatch_rl.paths import AffinePath, Field, PathPoints, Source
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True, eq=False)
class Prior:
    """A flow at the states of a batch, which a density of actions is given relative to.

    Attributes:
        field: Its prediction, bound to conditions of shape (B, 1, C), for points of shape (B, K, D).
        interval: Its first and last flow time.
    """

    field: Field
    interval: tuple[float, float]


@dataclass(frozen=True)
class EndpointEstimate:
    """Estimated pairs of endpoints at x_t, with the weight of each in a loss, and diagnostics.

    Attributes:
        x_0: Estimated noise, shape (B, D).
        x_1: Estimated data, shape (B, D).
        weight: Weight of the sample's loss, of mean 1 over the batch, shape (B,).
        eta: Coefficient of the control variate, shape (B, D).
        effective_sample_size: ``1 / sum w^2`` of the normalised weights that the estimate was made with, shape (B,).
        log_density_spread: Standard deviation of ``log p_1`` over the points that were weighted, nats, shape (B,).
    """

    x_0: Tensor
    x_1: Tensor
    weight: Tensor
    eta: Tensor
    effective_sample_size: Tensor
    log_density_spread: Tensor

    def diagnostics(self, prefix: str = "") -> dict[str, Tensor]:
        """Means over the batch by name, shape () each.

        Args:
            prefix: Start of the names.
        """
        return {
            f"{prefix}effective_sample_size": self.effective_sample_size.mean(),
            f"{prefix}eta": self.eta.mean(),
            f"{prefix}log_density_spread": self.log_density_spread.mean(),
        }


@dataclass(frozen=True)
class EndpointEstimator(abc.ABC):
    """Estimator of the pair (x_0, x_1) that a network is regressed on at x_t, for an unnormalised density p_1 of x_1.

    Mostly the pair of posterior means, of which every prediction of a network along the path is an exact function.

    Args:
        num_samples: Samples K that are drawn per state; 0 where no noise is used.
    """

    num_samples: int

    needs_jacobian: ClassVar[bool]
    """Whether p_1 is a density per volume of the path's space, with the Jacobian of a squash; otherwise it is relative
    to the distribution of the endpoints ``points.x_1``, or to a prior, and has no Jacobian, see
    ``boltzmann_density``."""

    needs_prior: ClassVar[bool] = False
    """Whether p_1 is relative to a prior that must be given."""

    @property
    @abc.abstractmethod
    def num_draws(self) -> int:
        """Standard normal vectors that each sample takes."""

    @property
    @abc.abstractmethod
    def compares_points(self) -> bool:
        """Whether points count in the loss by their weights over the batch, so that states are compared."""

    @property
    @abc.abstractmethod
    def needs_score(self) -> bool:
        """Whether the gradient of the log-density is used; where it is not, zeros may be passed in its place."""

    @abc.abstractmethod
    def check(self, path: AffinePath, source: Source) -> None:
        """Refuse a path or a source that the estimator cannot work with.

        Args:
            path: Path from noise to data.
            source: Distribution of x_0.

        Raises:
            ValueError: If the estimate would be undefined or would not converge to the posterior mean.
        """

    @abc.abstractmethod
    def estimate(
        self,
        path: AffinePath,
        source: Source,
        log_density_and_score: LogDensityAndScore,
        points: PathPoints,
        z: Tensor,
        prior: Prior | None = None,
    ) -> EndpointEstimate:
        """Estimate the pair of endpoints at points of a path.

        Args:
            path: Path from noise to data.
            source: Distribution of x_0, one that ``check`` accepts.
            log_density_and_score: Maps x_1 of shape (B, K, D) to log p_1 up to a constant per state, (B, K), and its
                gradient, (B, K, D), for any number K.
            points: Points on the path.
            z: Standard normal noise, shape (B, num_samples, num_draws * source.noise_dim(D)).
            prior: What p_1 is relative to, where ``needs_prior``.

        Returns:
            Endpoints, weights and diagnostics.

        Raises:
            ValueError: If a shape is not as stated.
        """
