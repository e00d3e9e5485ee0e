"""Distributions of the flow time that a loss is averaged over."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range


@dataclass(frozen=True)
class TimeDistribution(abc.ABC):
    """A distribution on [0, 1], given by its quantile function."""

    @abc.abstractmethod
    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""


@dataclass(frozen=True)
class UniformTime(TimeDistribution):
    """Uniform on [0, 1]."""

    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""
        return uniform


@dataclass(frozen=True)
class LogitNormalTime(TimeDistribution):
    """Sigmoid of a normal: most weight on the middle of the path for mean 0, late times for a positive mean.

    Args:
        mean: Mean of the normal.
        scale: Its standard deviation, positive.

    Raises:
        UserError: If ``scale`` is not positive.

    Reference:
        Esser et al., arXiv:2403.03206.
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", scale=self.scale)

    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""
        return torch.sigmoid(self.mean + self.scale * torch.special.ndtri(uniform.clamp(1e-7, 1.0 - 1e-7)))


@dataclass(frozen=True)
class CosineMapTime(TimeDistribution):
    """Flow times at which the linear path has the alpha / sigma that the cosine path has at uniform times.

    Like a logit-normal it prefers the middle, but with tails that reach t = 0 and t = 1.

    Reference:
        Esser et al., arXiv:2403.03206 (there CosMap).
    """

    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""
        tangent = torch.tan(0.5 * math.pi * uniform)
        return tangent / (1.0 + tangent)


@dataclass(frozen=True)
class KumaraswamyTime(TimeDistribution):
    """Density ``a b t^(a-1) (1 - t^a)^(b-1)``: Beta(a, 1) for b = 1, and Beta(1, b) for a = 1.

    ``b > 1`` with ``a = 1`` prefers early, noisy times, as robot policies often do; ``a > 1`` with ``b = 1`` late ones.

    Args:
        a: First shape, positive.
        b: Second shape, positive.

    Raises:
        UserError: If a shape is not positive.

    Reference:
        Kumaraswamy, J. Hydrology 46 (1980).
    """

    a: float = 1.0
    b: float = 1.5

    def __post_init__(self) -> None:
        check_range("(0, inf)", a=self.a, b=self.b)

    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""
        return (1.0 - (1.0 - uniform) ** (1.0 / self.b)) ** (1.0 / self.a)


@dataclass(frozen=True)
class UShapedTime(TimeDistribution):
    """Density proportional to ``cosh(sharpness (t - 1/2))``: most weight near t = 0 and t = 1.

    For the second stage of a rectified flow, whose straight paths are hard to learn near their endpoints only.

    Args:
        sharpness: Rate at which the density grows toward t = 0 and t = 1, positive.

    Raises:
        UserError: If ``sharpness`` is not positive.

    Reference:
        Lee et al., arXiv:2405.20320.
    """

    sharpness: float = 4.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", sharpness=self.sharpness)

    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""
        return 0.5 + torch.asinh((2.0 * uniform - 1.0) * math.sinh(0.5 * self.sharpness)) / self.sharpness


def stratify(uniform: Tensor) -> Tensor:
    """Move independent uniforms into one stratum of [0, 1) each, so that every batch covers all flow times evenly.

    Each is still uniform if the order of the batch carries no meaning.

    Args:
        uniform: Independent uniform noise in [0, 1), shape (B,).

    Returns:
        The i-th value moved to ``[i / B, (i + 1) / B)``, shape (B,).
    """
    moved = (uniform + torch.arange(len(uniform), device=uniform.device)) / len(uniform)
    # The sum may round up to the end of the last stratum, which is t = 1.
    return moved.clamp_max(1.0 - 0.5 * torch.finfo(moved.dtype).eps)
