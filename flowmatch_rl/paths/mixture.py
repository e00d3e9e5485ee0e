"""Gaussian mixtures, for which velocity, score and posterior means are known in closed form."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.shapes import append_dims, check_shape
from flowmatch_rl.types import Prediction, Velocity


@dataclass(frozen=True)
class Mixture(abc.ABC):
    """Mixture of J normals in D dimensions.

    Along every affine path from standard normal noise its marginal is again a mixture of normals, and the posterior
    means, and with them velocity and score, have closed forms.

    Args:
        weights: Probabilities, positive and of sum 1, shape (J,).
    """

    weights: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, shape (*batch), at points of shape (*batch, D)."""
        one = x.new_ones(x.shape[:-1])
        return torch.logsumexp(self._log_terms(x, one, torch.zeros_like(one))[0], dim=-1)

    def marginal_log_prob(self, path: AffinePath, x_t: Tensor, t: Tensor) -> Tensor:
        """Log-density of x_t on a path, nats, shape (*batch); arguments as for ``posterior_means``."""
        return torch.logsumexp(self._log_terms(x_t, *self._coefficients(path, x_t, t))[0], dim=-1)

    @abc.abstractmethod
    def posterior_means(self, path: AffinePath, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[x_1 | x_t].

        Args:
            path: Path from standard normal noise to the mixture.
            x_t: Points, shape (*batch, D).
            t: Flow time in [0, 1], its shape a prefix of the batch shape.

        Returns:
            Posterior means of noise and of data, both of shape (*batch, D).
        """

    def field(self, path: AffinePath, prediction: Prediction = "velocity") -> Velocity:
        """The exact marginal velocity along a path (or data, noise or score), as a function of (x, t, condition).

        Args:
            path: The path.
            prediction: Kind of prediction to return.

        Returns:
            The field; it ignores its condition.
        """

        def exact(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            x_0, x_1 = self.posterior_means(path, x_t, t)
            return path.target(prediction, x_0, x_1, t)

        return exact

    @abc.abstractmethod
    def _log_terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density per component (..., J), and the offsets from the means and the variances that it follows from."""

    def _components(self, uniform: Tensor) -> Tensor:
        """Components drawn by uniform noise, int64, both of shape (*batch)."""
        bounds = self.weights.cumsum(0)
        return torch.searchsorted(bounds, uniform.to(bounds).contiguous()).clamp_max(len(bounds) - 1)

    @staticmethod
    def _coefficients(path: AffinePath, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = append_dims(t, like=x_t[..., 0]).to(x_t).expand(x_t.shape[:-1])
        return path.schedule.alpha(t), path.schedule.sigma(t)


@dataclass(frozen=True)
class GaussianMixture(Mixture):
    """Mixture of J isotropic normals in D dimensions.

    Args:
        weights: Probabilities, positive and of sum 1, shape (J,).
        means: Means, shape (J, D).
        scales: Standard deviations, positive, shape (J,).

    Raises:
        ValueError: If the shapes do not fit, or weights or scales are out of range.
    """

    means: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.means.dim() != 2:
            raise ValueError(f"expected means of shape (J, D), got {tuple(self.means.shape)}")
        for name, value in (("weights", self.weights), ("scales", self.scales)):
            check_shape(name, value, (len(self.means),))
            if not bool((value > 0).all()):
                raise ValueError(f"{name} must be positive, got {value.tolist()}")
        if abs(float(self.weights.sum()) - 1.0) > 1e-6:
            raise ValueError(f"weights must have the sum 1, got {float(self.weights.sum())}")

    def draw(self, uniform: Tensor, z: Tensor) -> Tensor:
        """Samples.

        Args:
            uniform: Uniform noise in [0, 1), shape (B,).
            z: Standard normal noise, shape (B, D).

        Returns:
            Samples, shape (B, D).
        """
        component = self._components(uniform)
        return self.means[component] + self.scales[component, None] * z

    def posterior_means(self, path: AffinePath, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[x_1 | x_t], both of shape (*batch, D)."""
        alpha, sigma = self._coefficients(path, x_t, t)
        log_terms, offset, variance = self._log_terms(x_t, alpha, sigma)
        responsibility = torch.softmax(log_terms, dim=-1)[..., None]  # (..., J, 1)
        alpha, sigma = alpha[..., None], sigma[..., None]
        x_1 = self.means + (alpha * self.scales.square() / variance)[..., None] * offset
        x_0 = (sigma / variance)[..., None] * offset
        return (responsibility * x_0).sum(-2), (responsibility * x_1).sum(-2)

    def _log_terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density per component (..., J), offsets from the means (..., J, D), variances (..., J)."""
        alpha, sigma = alpha[..., None], sigma[..., None]
        variance = alpha.square() * self.scales.square() + sigma.square()
        offset = x[..., None, :] - alpha[..., None] * self.means
        half = 0.5 * offset.square().sum(-1) / variance
        return self.weights.log() - half - 0.5 * x.shape[-1] * torch.log(2.0 * math.pi * variance), offset, variance
