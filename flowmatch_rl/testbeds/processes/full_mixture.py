"""Batches of mixtures of normals with full covariances, for which a flow's marginals are known exactly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, Mixture
from flowmatch_rl.shapes import check_shape


@dataclass(frozen=True)
class FullGaussianMixture(Mixture):
    """A batch of mixtures of J normals in D dimensions that differ in their means only.

    Covariances are given by their principal axes, so that those along a path need no further matrix factorisation:
    at time t component j is ``N(alpha mean_j, axes_j (alpha^2 variances_j + sigma^2) axes_j^T)``.

    Points may have more batch dimensions than the mixtures; the shape of the mixtures is then a prefix of theirs.

    Args:
        weights: Probabilities, positive and of sum 1, shape (J,).
        means: Means, shape (*batch, J, D).
        axes: Orthonormal principal axes in the columns, shape (J, D, D).
        variances: Variances along them, positive, shape (J, D).

    Raises:
        ValueError: If the shapes do not fit.
    """

    means: Tensor
    axes: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        number, dim = self.means.shape[-2:]
        check_shape("weights", self.weights, (number,))
        check_shape("axes", self.axes, (number, dim, dim))
        check_shape("variances", self.variances, (number, dim))

    @property
    def mean(self) -> Tensor:
        """Means of the mixtures, shape (*batch, D)."""
        return (self.weights[:, None] * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """Covariances of the mixtures, shape (*batch, D, D)."""
        within = torch.einsum("j,jde,je,jfe->df", self.weights, self.axes, self.variances, self.axes)
        offset = self.means - self.mean[..., None, :]
        return within + torch.einsum("j,...jd,...jf->...df", self.weights, offset, offset)

    def draw(self, uniform: Tensor, z: Tensor) -> Tensor:
        """Samples.

        Args:
            uniform: Uniform noise in [0, 1), shape (*batch).
            z: Standard normal noise, shape (*batch, D).

        Returns:
            Samples, shape (*batch, D).
        """
        check_shape("uniform", uniform, tuple(z.shape[:-1]))
        part = self._components(uniform)
        means = self._means_for(z).expand(*z.shape[:-1], *self.means.shape[-2:])
        mean = means.gather(-2, part[..., None, None].expand(*part.shape, 1, z.shape[-1])).squeeze(-2)
        return mean + torch.einsum("...de,...e->...d", self.axes[part], self.variances[part].sqrt() * z)

    def posterior_means(self, path: AffinePath, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[x_1 | x_t], both of shape (*batch, D)."""
        alpha, sigma = self._coefficients(path, x_t, t)
        log_terms, offset, variance = self._log_terms(x_t, alpha, sigma)
        weights = torch.softmax(log_terms, dim=-1)
        scaled = weights[..., None] * offset / variance
        x_0 = sigma[..., None] * torch.einsum("jde,...je->...d", self.axes, scaled)
        x_1 = alpha[..., None] * torch.einsum("jde,...je->...d", self.axes, scaled * self.variances)
        return x_0, x_1 + (weights[..., None] * self._means_for(x_t)).sum(-2)

    def _means_for(self, x: Tensor) -> Tensor:
        """Means with unit dimensions in the place of the batch dimensions that only x has."""
        batch = self.means.shape[:-2]
        if x.shape[-1] != self.means.shape[-1] or tuple(x.shape[: len(batch)]) != tuple(batch) or x.dim() <= len(batch):
            raise ValueError(
                f"expected points of dimension {self.means.shape[-1]} whose shape begins with {tuple(batch)}, "
                f"got {tuple(x.shape)}"
            )
        return self.means.reshape(*batch, *(1,) * (x.dim() - 1 - len(batch)), *self.means.shape[-2:])

    def _log_terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density per component (..., J), offsets along the axes (..., J, D), variances (..., J, D)."""
        alpha, sigma = alpha[..., None, None], sigma[..., None, None]
        variance = alpha.square() * self.variances + sigma.square()
        offset = torch.einsum("jde,...jd->...je", self.axes, x[..., None, :] - alpha * self._means_for(x))
        half = 0.5 * (offset.square() / variance + torch.log(2.0 * math.pi * variance)).sum(-1)
        return self.weights.log() - half, offset, variance
