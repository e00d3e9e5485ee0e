"""Closed forms and independent re-derivations that the package is compared with."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from flowmatch_rl.estimators import ControlVariate
from flowmatch_rl.paths import GaussianSource, PathPoints, Schedule
from flowmatch_rl.types import LogDensityAndScore

F64 = torch.float64
NORMAL = GaussianSource()
"""The standard normal source."""


def at(x_t: Tensor, t: Tensor) -> PathPoints:
    """Points whose end points are unknown, for estimators that must not use them."""
    unknown = torch.full_like(x_t, math.nan)
    return PathPoints(unknown, unknown, x_t, t)


def normal(*shape: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    """Standard normal draws that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def uniform(*shape: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    """Uniform draws that depend on the seed alone."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def stratified_normal(count: int) -> Tensor:
    """The quantiles of a standard normal at the midpoints of equal strata, shape (count,)."""
    return torch.special.ndtri((torch.arange(count, dtype=F64) + 0.5) / count)


def rmse(error: Tensor) -> float:
    """Root of the mean square over all entries."""
    return error.square().mean().sqrt().item()


@dataclass(frozen=True)
class GaussianMixture:
    """Mixture of isotropic normals with closed-form posterior means along affine paths.

    Attributes:
        weights: Probabilities, shape (J,).
        means: Means, shape (J, D).
        scales: Standard deviations, shape (J,).
    """

    weights: Tensor
    means: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weights: list[float], means: list[list[float]], scales: list[float]) -> "GaussianMixture":
        return cls(torch.tensor(weights, dtype=F64), torch.tensor(means, dtype=F64), torch.tensor(scales, dtype=F64))

    def _log_terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-density of each component at x (..., D), offsets (..., J, D) and variances (..., J) of its marginal."""
        alpha, sigma = torch.as_tensor(alpha, dtype=F64)[..., None], torch.as_tensor(sigma, dtype=F64)[..., None]
        variance = alpha.square() * self.scales.square() + sigma.square()  # (..., J)
        offset = x[..., None, :] - alpha[..., None] * self.means  # (..., J, D)
        half = offset.square().sum(-1) / (2.0 * variance)
        return self.weights.log() - half - 0.5 * x.shape[-1] * torch.log(2.0 * math.pi * variance), offset, variance

    def log_marginal(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log-density of x_t (..., D) with coefficients of shape (...), in nats."""
        return torch.logsumexp(self._log_terms(x_t, alpha, sigma)[0], dim=-1)

    def density(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density and its gradient."""
        terms, offset, variance = self._log_terms(x, torch.tensor(1.0), torch.tensor(0.0))
        share = torch.softmax(terms, dim=-1)
        return torch.logsumexp(terms, dim=-1), -(share / variance)[..., None, :].matmul(offset).squeeze(-2)

    def posterior_means(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0] and E[x_1] given x_t (..., D), with coefficients of shape (...)."""
        terms, offset, variance = self._log_terms(x_t, alpha, sigma)
        share = torch.softmax(terms, dim=-1)[..., None]  # (..., J, 1)
        alpha, sigma = (torch.as_tensor(c, dtype=F64)[..., None] for c in (alpha, sigma))
        x_1 = self.means + ((alpha * self.scales.square()) / variance)[..., None] * offset
        x_0 = (sigma / variance)[..., None] * offset
        return (share * x_0).sum(-2), (share * x_1).sum(-2)

    def at(self, alpha: Tensor, sigma: Tensor) -> "GaussianMixture":
        """Law of x_t for scalar coefficients."""
        scales = (alpha.square() * self.scales.square() + sigma.square()).sqrt()
        return GaussianMixture(self.weights, alpha * self.means, scales)

    def draw(self, count: int, seed: int) -> Tensor:
        """Samples, shape (count, D)."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], generator=generator, dtype=F64)
        return self.means[which] + self.scales[which, None] * z

    def quantiles(self, count: int) -> Tensor:
        """Quantiles at the midpoints of equal strata, by bisection; one dimension; shape (count,)."""
        wanted = (torch.arange(count, dtype=F64) + 0.5) / count
        low, high = torch.full_like(wanted, -50.0), torch.full_like(wanted, 50.0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = torch.special.ndtr((middle[:, None] - self.means[:, 0]) / self.scales) @ self.weights < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)


ONE_D = GaussianMixture.of([0.3, 0.7], [[-1.3], [1.1]], [0.35, 0.45])
"""Two unequal modes on the line."""

EVEN = GaussianMixture.of([0.5, 0.5], [[-1.0], [1.0]], [0.3, 0.3])
"""Two equal modes on the line."""

TWO_D = GaussianMixture.of([0.25] * 4, [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], [0.3] * 4)
"""Four modes in the plane."""


def gaussian_density(mean: Tensor, precision: Tensor) -> LogDensityAndScore:
    """Log-density, up to a constant, and score of a normal with mean (D,) and precision matrix (D, D)."""

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        pull = (x - mean) @ precision
        return -0.5 * (pull * (x - mean)).sum(-1), -pull

    return density


def quadrature_nodes(batch: int, count: int = 8001, width: float = 11.0) -> Tensor:
    """Equally spaced nodes in place of normal noise in one dimension, shape (batch, 2 count, 1).

    They come twice, one half for each member of an even mixture of proposals.
    """
    return torch.linspace(-width, width, count, dtype=F64).repeat(2)[:, None].expand(batch, -1, -1)


def on_quadrature(density: LogDensityAndScore, nodes: Tensor) -> LogDensityAndScore:
    """The density with the normal weight of the nodes added.

    An estimator that is fed the nodes as noise then sums a trapezoidal rule: its weighted sums are posterior
    expectations to rounding error, whatever the proposal.
    """

    def weighted(x: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = density(x)
        return log_density - 0.5 * nodes.square().sum(-1), score

    return weighted


@dataclass(frozen=True)
class RecordingControlVariate(ControlVariate):
    """Coefficient given by the test, per state and dimension; keeps what it was called with."""

    eta: Tensor = field(default_factory=lambda: torch.zeros((), dtype=F64))
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def needs_score(self) -> bool:
        return True

    def coefficient(self, weights: Tensor, x_0: Tensor, r: Tensor, rho: Tensor, t: Tensor) -> Tensor:
        self.calls.append((weights, x_0, r, rho))
        return self.eta.expand_as(x_0[:, 0])


Rule = Literal["none", "gradient", "fixed", "regress", "fisher"]


def reference_posterior_means(
    density: LogDensityAndScore,
    schedule: Schedule,
    x_t: Tensor,
    t: Tensor,
    z: Tensor,
    base_variance: float | None,
    rule: Rule,
    eta: float = 0.0,
    limit: float = 2.0,
    ridge: float = 1e-4,
    eta_max: float = 2.0,
    c_max: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Posterior means of x_0 and x_1, derived over the data posterior, one state and one dimension at a time.

    The coefficient is c, in units of x_1, of the score of the data posterior ``s = grad log p_1(x_1) + x_0 / rho``.
    With ``base_variance`` the points are drawn from the likelihood times a normal of that variance.
    """
    mean_0, mean_1 = torch.empty_like(x_t), torch.empty_like(x_t)
    batch, count, dims = z.shape
    for b in range(batch):
        alpha, sigma = schedule.alpha(t[b]), schedule.sigma(t[b])
        rho = sigma / alpha
        if base_variance is None:
            points = x_t[b] / alpha + rho * z[b]
            log_correction = torch.zeros(count, dtype=z.dtype)
        else:
            variance = 1.0 / (1.0 / rho**2 + 1.0 / base_variance)
            points = variance * x_t[b] / (alpha * rho**2) + variance.sqrt() * z[b]
            log_correction = (points**2).sum(-1) / (2.0 * base_variance)
        log_density, score = density(points[None])
        log_weight = log_density[0] + log_correction
        weight = (log_weight - log_weight.max()).exp()
        weight = weight / weight.sum()
        for d in range(dims):
            x_1 = points[:, d]
            x_0 = (x_t[b, d] - alpha * x_1) / sigma
            s = score[0, :, d] + x_0 / rho
            bar_x, bar_s = weight @ x_1, weight @ s
            match rule:
                case "none":
                    c = torch.zeros((), dtype=z.dtype)
                case "gradient":
                    c = rho**2
                case "fixed":
                    c = eta * rho**2
                case "regress":
                    c = -(weight**2 @ ((x_1 - bar_x) * (s - bar_s))) / (weight**2 @ (s - bar_s) ** 2 + ridge)
                    c = c.clamp(-limit, limit)
                case "fisher":
                    c = (1.0 / (weight @ s**2)).clamp(max=min(eta_max * rho.item() ** 2, c_max))
            mean_1[b, d] = bar_x + c * bar_s
            mean_0[b, d] = (x_t[b, d] - alpha * mean_1[b, d]) / sigma
    return mean_0, mean_1
