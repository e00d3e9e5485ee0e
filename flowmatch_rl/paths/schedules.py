"""Schedules: the coefficients alpha_t and sigma_t of an affine probability path."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """Coefficients of the path ``x_t = alpha_t x_1 + sigma_t x_0`` for flow time t in [0, 1].

    Noise is at t = 0 and data at t = 1. Every method takes t of any shape and returns that shape.
    """

    @abc.abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at flow time ``t``."""

    @abc.abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at flow time ``t``."""

    @abc.abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to flow time."""

    @abc.abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma with respect to flow time."""


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """Conditional optimal transport: ``alpha = t``, ``sigma = 1 - (1 - sigma_min) t``.

    Args:
        sigma_min: Noise remaining at t = 1, in [0, 1).

    Raises:
        UserError: If ``sigma_min`` is outside [0, 1).

    Reference:
        Lipman et al., arXiv:2210.02747 (there the path of the optimal transport displacement map).
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        check_range("[0, 1)", sigma_min=self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at flow time ``t``."""
        return t

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at flow time ``t``."""
        return 1.0 - t if self.sigma_min == 0.0 else 1.0 - (1.0 - self.sigma_min) * t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to flow time."""
        return torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma with respect to flow time."""
        return torch.full_like(t, self.sigma_min - 1.0)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """Trigonometric variance-preserving path: ``alpha = sin(pi t / 2)``, ``sigma = cos(pi t / 2)``."""

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at flow time ``t``."""
        return torch.sin(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at flow time ``t``."""
        return torch.cos(0.5 * math.pi * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to flow time."""
        return 0.5 * math.pi * torch.cos(0.5 * math.pi * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma with respect to flow time."""
        return -0.5 * math.pi * torch.sin(0.5 * math.pi * t)


@dataclass(frozen=True)
class VariancePreservingSchedule(Schedule):
    """Variance-preserving diffusion with a linear noise rate, run backwards in time.

    With diffusion time ``u = 1 - t`` and ``T(u) = beta_min u + (beta_max - beta_min) u^2 / 2``:
    ``alpha = exp(-T / 2)``, ``sigma = sqrt(1 - exp(-T))``. At t = 0 a little of the data remains,
    ``alpha = exp(-(beta_min + beta_max) / 4)``.

    Args:
        beta_min: Noise rate at t = 1, positive.
        beta_max: Noise rate at t = 0, at least ``beta_min``.

    Raises:
        UserError: If not ``0 < beta_min <= beta_max``.

    Reference:
        Song et al., arXiv:2011.13456 (variance preserving SDE).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", beta_min=self.beta_min)
        check_range(f"[{self.beta_min}, inf)", beta_max=self.beta_max)

    def _integrated_rate(self, t: Tensor) -> Tensor:
        u = 1.0 - t
        return self.beta_min * u + 0.5 * (self.beta_max - self.beta_min) * u.square()

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * (1.0 - t)

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at flow time ``t``."""
        return torch.exp(-0.5 * self._integrated_rate(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at flow time ``t``."""
        # A solver may overstep t = 1 by a rounding error.
        return torch.sqrt(-torch.expm1(-self._integrated_rate(t).clamp_min(0.0)))

    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to flow time."""
        return 0.5 * self._rate(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma with respect to flow time; unbounded at t = 1."""
        return -0.5 * self._rate(t) * torch.exp(-self._integrated_rate(t)) / self.sigma(t)


@dataclass(frozen=True)
class VarianceExplodingSchedule(Schedule):
    """Variance-exploding diffusion: ``alpha = 1``, ``sigma = sigma_max (sigma_min / sigma_max) ** t``.

    The data is never scaled down; at t = 0 it is hidden by noise of standard deviation ``sigma_max``, which should be
    many times the spread of the data. Networks need their input scaled, see ``AffinePath.input_scale``.

    Args:
        sigma_min: Noise remaining at t = 1, in units of the data, positive.
        sigma_max: Noise at t = 0, above ``sigma_min``.

    Raises:
        UserError: If not ``0 < sigma_min < sigma_max``.

    Reference:
        Song et al., arXiv:2011.13456 (variance exploding SDE).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", sigma_min=self.sigma_min)
        check_range(f"({self.sigma_min}, inf)", sigma_max=self.sigma_max)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_min / self.sigma_max)

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at flow time ``t``."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at flow time ``t``."""
        return self.sigma_max * torch.exp(self._log_ratio * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """Derivative of alpha with respect to flow time."""
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Derivative of sigma with respect to flow time."""
        return self._log_ratio * self.sigma(t)
