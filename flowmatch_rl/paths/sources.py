"""Source distributions: where a flow starts, the distribution of x_0."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.shapes import check_shape


@dataclass(frozen=True)
class Source(abc.ABC):
    """A distribution on R^D, sampled by a map of standard normal noise."""

    is_smooth: ClassVar[bool]
    """Whether the density is positive and differentiable everywhere, so that the mean of its score is zero."""

    @property
    @abc.abstractmethod
    def is_standard_normal(self) -> bool:
        """Whether the distribution is N(0, I), as score prediction and stochastic samplers need."""

    @abc.abstractmethod
    def noise_dim(self, sample_dim: int) -> int:
        """Number of standard normal variables per point of dimension ``sample_dim``.

        Raises:
            UserError: If the source has another dimension.
        """

    @abc.abstractmethod
    def transform(self, noise: Tensor) -> Tensor:
        """Map standard normal noise to points of the source.

        Args:
            noise: Standard normal, shape (*batch, noise_dim(D)).

        Returns:
            Points x_0, shape (*batch, D).
        """

    @abc.abstractmethod
    def log_prob(self, x_0: Tensor) -> Tensor:
        """Log-density in nats, shape (*batch), at points of shape (*batch, D)."""

    @abc.abstractmethod
    def score(self, x_0: Tensor) -> Tensor:
        """Gradient of the log-density where it has one, shape (*batch, D), at points of shape (*batch, D)."""

    @abc.abstractmethod
    def moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance per dimension, shape (D,) each.

        Args:
            like: Tensor whose dimension, type and device the moments get, shape (..., D).
        """

    @abc.abstractmethod
    def log_gaussian_ratio(self, x_0: Tensor) -> Tensor:
        """Log-density minus that of the Gaussian with the same ``moments``, nats, shape (*batch)."""


@dataclass(frozen=True)
class GaussianSource(Source):
    """N(0, scale^2 I).

    Args:
        scale: Standard deviation, positive.

    Raises:
        UserError: If ``scale`` is not positive.
    """

    is_smooth: ClassVar[bool] = True

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", scale=self.scale)

    @property
    def is_standard_normal(self) -> bool:
        """Whether the scale is 1."""
        return self.scale == 1.0

    def noise_dim(self, sample_dim: int) -> int:
        """One normal per dimension."""
        return sample_dim

    def transform(self, noise: Tensor) -> Tensor:
        """The noise times the scale."""
        return noise if self.scale == 1.0 else self.scale * noise

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Log-density in nats, shape (*batch), at points of shape (*batch, D)."""
        constant = math.log(2.0 * math.pi * self.scale**2)
        return -0.5 * (x_0.square().sum(-1) / self.scale**2 + x_0.shape[-1] * constant)

    def score(self, x_0: Tensor) -> Tensor:
        """Gradient of the log-density, ``-x_0 / scale^2``."""
        return -x_0 if self.scale == 1.0 else -x_0 / self.scale**2

    def moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zero and the square of the scale."""
        zero = like.new_zeros(like.shape[-1])
        return zero, zero + self.scale**2

    def log_gaussian_ratio(self, x_0: Tensor) -> Tensor:
        """Zero: the source is that Gaussian."""
        return torch.zeros_like(x_0[..., 0])


@dataclass(frozen=True)
class UniformSource(Source):
    """Uniform on the box [-half_width, half_width]^D.

    Args:
        half_width: Half the side of the box, positive; sqrt(3), the default, gives unit variance.

    Raises:
        UserError: If ``half_width`` is not positive.
    """

    # The score is zero inside; all of the density's change is in the jump at the walls.
    is_smooth: ClassVar[bool] = False

    half_width: float = 3.0**0.5

    def __post_init__(self) -> None:
        check_range("(0, inf)", half_width=self.half_width)

    @property
    def is_standard_normal(self) -> bool:
        """False."""
        return False

    def noise_dim(self, sample_dim: int) -> int:
        """One normal per dimension."""
        return sample_dim

    def transform(self, noise: Tensor) -> Tensor:
        """The normal distribution function of the noise, scaled to the box."""
        return self.half_width * torch.erf(noise / math.sqrt(2.0))

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Log-density in nats, shape (*batch), at points of shape (*batch, D); minus infinity outside the box."""
        inside = (x_0.abs() <= self.half_width).all(-1)
        height = -x_0.shape[-1] * math.log(2.0 * self.half_width)
        return torch.full_like(x_0[..., 0], height).masked_fill(~inside, -math.inf)

    def score(self, x_0: Tensor) -> Tensor:
        """Zero, the gradient away from the walls."""
        return torch.zeros_like(x_0)

    def moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zero and a third of the square of the half width."""
        zero = like.new_zeros(like.shape[-1])
        return zero, zero + self.half_width**2 / 3.0

    def log_gaussian_ratio(self, x_0: Tensor) -> Tensor:
        """Log-density minus that of the Gaussian with the same moments; minus infinity outside the box."""
        return self.log_prob(x_0) - GaussianSource(self.half_width / math.sqrt(3.0)).log_prob(x_0)


@dataclass(frozen=True)
class MixtureSource(Source):
    """Equal mixture of isotropic normals.

    Args:
        means: Mean of each, a list of lists of equal lengths; in units of the standardised data.
        scale: Standard deviation of all, positive.

    Raises:
        UserError: If the means are empty or of different lengths, or ``scale`` is not positive.
    """

    is_smooth: ClassVar[bool] = True

    means: list[list[float]]
    scale: float = 0.3

    def __post_init__(self) -> None:
        lengths = {len(mean) for mean in self.means}
        if len(lengths) != 1 or lengths == {0}:
            raise UserError(f"means must be lists of one length, at least 1, got lengths {sorted(lengths)}")
        check_range("(0, inf)", scale=self.scale)

    @property
    def is_standard_normal(self) -> bool:
        """False."""
        return False

    def noise_dim(self, sample_dim: int) -> int:
        """One normal per dimension, and one that chooses the component."""
        if sample_dim != len(self.means[0]):
            raise UserError(f"the source has {len(self.means[0])} dimensions, the samples have {sample_dim}")
        return sample_dim + 1

    def transform(self, noise: Tensor) -> Tensor:
        """A component chosen by the last entry of the noise, moved and scaled."""
        check_shape("noise", noise, (*noise.shape[:-1], len(self.means[0]) + 1))
        means = torch.tensor(self.means, dtype=noise.dtype, device=noise.device)
        component = (torch.special.ndtr(noise[..., -1]) * len(means)).long().clamp_max(len(means) - 1)
        return means[component] + self.scale * noise[..., :-1]

    def log_prob(self, x_0: Tensor) -> Tensor:
        """Log-density in nats, shape (*batch), at points of shape (*batch, D)."""
        means = torch.tensor(self.means, dtype=x_0.dtype, device=x_0.device)
        distance = (x_0[..., None, :] - means).square().sum(-1)
        constant = x_0.shape[-1] * math.log(2.0 * math.pi * self.scale**2)
        return torch.logsumexp(-0.5 * (distance / self.scale**2 + constant), -1) - math.log(len(means))

    def score(self, x_0: Tensor) -> Tensor:
        """Gradient of the log-density: the mean of the components' gradients, weighted by their responsibilities."""
        means = torch.tensor(self.means, dtype=x_0.dtype, device=x_0.device)
        offset = means - x_0[..., None, :]
        responsibility = torch.softmax(-0.5 * offset.square().sum(-1) / self.scale**2, -1)
        return (responsibility[..., None] * offset).sum(-2) / self.scale**2

    def moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the means; their variance plus that of a component."""
        means = torch.tensor(self.means, dtype=like.dtype, device=like.device)
        check_shape("means", means, (len(self.means), like.shape[-1]))
        return means.mean(0), means.var(0, correction=0) + self.scale**2

    def log_gaussian_ratio(self, x_0: Tensor) -> Tensor:
        """Log-density minus that of the Gaussian with the same moments."""
        mean, variance = self.moments(x_0)
        gaussian = -0.5 * ((x_0 - mean).square() / variance + (2.0 * math.pi * variance).log()).sum(-1)
        return self.log_prob(x_0) - gaussian
