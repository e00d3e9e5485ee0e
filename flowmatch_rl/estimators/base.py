"""What estimators of a path's end points are given, and what they return."""

import abc
from dataclasses import dataclass

from torch import Tensor

from flowmatch_rl.paths import AffinePath, Source
from flowmatch_rl.types import LogDensityAndScore


@dataclass(frozen=True)
class PathPoints:
    """Points of a path with the end points they were made of.

    Attributes:
        x_0: Noise end points, shape (B, D).
        x_1: Data end points, shape (B, D).
        x_t: Points ``alpha x_1 + sigma x_0``, shape (B, D).
        t: Flow times in (0, 1), shape (B,).
    """

    x_0: Tensor
    x_1: Tensor
    x_t: Tensor
    t: Tensor

    @classmethod
    def between(cls, path: AffinePath, x_0: Tensor, x_1: Tensor, t: Tensor) -> "PathPoints":
        """The points of a path between given end points.

        Args:
            path: Path from noise to data.
            x_0: Noise, shape (B, D).
            x_1: Data, shape (B, D).
            t: Flow times, shape (B,).

        Returns:
            The points and what they were made of.

        Raises:
            ValueError: If a shape is not as stated.
        """
        return cls(x_0, x_1, path.sample(x_0, x_1, t), t)


@dataclass(frozen=True)
class PosteriorMean:
    """Estimated posterior means at x_t, with the weight of each in a loss, and diagnostics.

    Attributes:
        x_0: Mean of the noise end point, shape (B, D).
        x_1: Mean of the data end point, shape (B, D).
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


@dataclass(frozen=True)
class EndPointEstimator(abc.ABC):
    """Estimator of E[x_0 given x_t] and E[x_1 given x_t] for data known by an unnormalised density p_1.

    Every prediction of a network along the path is an exact function of the two means.

    Args:
        num_samples: Samples K that are drawn per state; 0 where no noise is used.
    """

    num_samples: int

    @property
    @abc.abstractmethod
    def needs_score(self) -> bool:
        """Whether the gradient of the log-density is used; where it is not, zeros may be handed in its place."""

    @property
    @abc.abstractmethod
    def needs_jacobian(self) -> bool:
        """Whether p_1 is a density per volume of the path's space, with the Jacobian of a squash.

        Where it is not, p_1 is relative to the law of the end points ``points.x_1``, and the Jacobian must be left
        out; see ``boltzmann_density``.
        """

    @abc.abstractmethod
    def check(self, path: AffinePath, source: Source) -> None:
        """Refuse a path or a source that the estimator cannot work with.

        Args:
            path: Path from noise to data.
            source: Law of x_0.

        Raises:
            ValueError: If the estimate would be undefined or would not converge to the posterior mean.
        """

    @abc.abstractmethod
    def estimate(
        self, path: AffinePath, source: Source, log_density_and_score: LogDensityAndScore, points: PathPoints, z: Tensor
    ) -> PosteriorMean:
        """Estimate the posterior means at points of a path.

        Args:
            path: Path from noise to data.
            source: Law of x_0, one that ``check`` accepts.
            log_density_and_score: Maps x_1 of shape (B, K, D) to log p_1 up to a constant per state, (B, K), and its
                gradient, (B, K, D), for any number K.
            points: Points on the path.
            z: Standard normal noise, shape (B, num_samples, source.noise_dim(D)).

        Returns:
            Posterior means, weights and diagnostics.

        Raises:
            ValueError: If a shape is not as stated.
        """
