"""A bandit in any dimension whose coordinates depend on each other."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.bandits.base import Bandit

MARGIN = 5.0
"""Standard deviations that the means keep from the edge of the box: less than one action in a million lies beyond."""


@dataclass(frozen=True)
class CorrelatedGaussians(Bandit):
    """The logarithm of a mixture of two Gaussians whose covariances are full matrices.

    The first two coordinates of their means are ``mode`` and ``-mode``, the others 0. In either Gaussian coordinates i
    and j have the correlation ``c^|i - j|``, with ``c = correlation`` in the first and ``c = -correlation`` in the
    second. Density, score and samples are exact at temperature 1, up to the mass beyond the box, which is below one in
    a million per coordinate; other temperatures are refused, since the distribution is then no mixture.

    Args:
        dimensions: Dimension D of the action, at least 2.
        mode: Entries of the means, at least 0; at least five standard deviations from the edge of the box.
        scale: Standard deviation of each coordinate, positive, in units of the action.
        correlation: Correlation of neighbouring coordinates, in (-1, 1).
        weight: Probability of the first Gaussian, in (0, 1).

    Raises:
        UserError: If a number is out of its range.
    """

    dimensions: int = 6
    mode: float = 0.35
    scale: float = 0.12
    correlation: float = 0.6
    weight: float = 0.6

    def __post_init__(self) -> None:
        check_range("[2, inf)", dimensions=self.dimensions)
        check_range("[0, 1)", mode=self.mode)
        check_range("(0, inf)", scale=self.scale)
        check_range("(-1, 1)", correlation=self.correlation)
        check_range("(0, 1)", weight=self.weight)
        if self.mode + MARGIN * self.scale > 1.0:
            raise UserError(
                f"expected mode + {MARGIN:g} scale of at most 1, so that the box holds all mass, got {self}"
            )

    @property
    def action_dim(self) -> int:
        """Dimension D of the action."""
        return self.dimensions

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return f"correlated_{self.dimensions}d"

    @property
    def length(self) -> float:
        """Standard deviation of a Gaussian along its narrowest axis."""
        return float(torch.linalg.eigvalsh(self._covariances()).amin().sqrt())

    @property
    def num_modes(self) -> int:
        """Two."""
        return 2

    def value_and_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of the mixture (...), and its gradient (..., D)."""
        self.check_actions("actions", actions)
        terms, pulls = self._terms(actions)
        return terms.logsumexp(-1), (terms.softmax(-1)[..., None] * pulls).sum(-2)

    def mode_of(self, actions: Tensor) -> Tensor:
        """The Gaussian that the action more likely comes from."""
        self.check_actions("actions", actions)
        return self._terms(actions)[0].argmax(-1)

    def sample(self, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """Exact samples, shape (N, D): the first number chooses the Gaussian, and what is left of it the entry."""
        check_shape("uniform", uniform, (len(uniform), self.dimensions))
        self._check_temperature(temperature)
        level = uniform.double()
        first = level[:, :1] < self.weight
        rest = torch.where(first, level[:, :1] / self.weight, (level[:, :1] - self.weight) / (1.0 - self.weight))
        tiny = torch.finfo(torch.float64).eps
        noise = torch.special.ndtri(torch.cat([rest, level[:, 1:]], dim=1).clamp(tiny, 1.0 - tiny))
        means, factors = self._means().to(level), torch.linalg.cholesky(self._covariances()).to(level)
        drawn = means[:, None] + noise @ factors.mT  # (2, N, D)
        return torch.where(first, drawn[0], drawn[1]).clamp(-1.0, 1.0).to(uniform)

    def log_normaliser(self, temperature: float = 1.0) -> float:
        """Zero: the value is the logarithm of a density."""
        self._check_temperature(temperature)
        return 0.0

    def grid_mean(self, actions: Tensor, log_weight: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
        """Refused: the coordinates depend on each other, and no grid has all of them.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self} has no means by quadrature: use a bandit that is a product, or one in the plane")

    def plane_log_prob(self, points: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-density in nats of the first two entries of the action, shape (...)."""
        self._check_temperature(temperature)
        plane = CorrelatedGaussians(2, self.mode, self.scale, self.correlation, self.weight)
        return plane.value_and_gradient(points)[0]

    def _check_temperature(self, temperature: float) -> None:
        if temperature != 1.0:
            raise UserError(f"CorrelatedGaussians is known at temperature 1 only, got {temperature}")

    def _means(self) -> Tensor:
        """Means, float64, shape (2, D)."""
        mean = torch.zeros(self.dimensions, dtype=torch.float64)
        mean[:2] = self.mode
        return torch.stack([mean, -mean])

    def _covariances(self) -> Tensor:
        """Covariances, float64, shape (2, D, D)."""
        place = torch.arange(self.dimensions, dtype=torch.float64)
        apart = (place[:, None] - place).abs()
        first = self.scale**2 * abs(self.correlation) ** apart
        alternate = (-1.0) ** apart * first
        return torch.stack([first, alternate] if self.correlation >= 0.0 else [alternate, first])

    def _terms(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of either Gaussian with its weight, shape (..., 2), and the gradients of it, (..., 2, D)."""
        precisions, log_scales = (x.to(actions) for x in _constants(self))
        offsets = self._means().to(actions) - actions[..., None, :]  # (..., 2, D)
        pulls = torch.einsum("...jd,jde->...je", offsets, precisions)
        return log_scales - 0.5 * (pulls * offsets).sum(-1), pulls


@functools.lru_cache(maxsize=32)
def _constants(bandit: CorrelatedGaussians) -> tuple[Tensor, Tensor]:
    """Precisions, shape (2, D, D), and logarithms of weight over constant, shape (2,), float64."""
    covariances = bandit._covariances()
    weights = torch.tensor([bandit.weight, 1.0 - bandit.weight], dtype=torch.float64)
    constant = 0.5 * (bandit.dimensions * math.log(math.tau) + torch.logdet(covariances))
    return torch.linalg.inv(covariances), weights.log() - constant
