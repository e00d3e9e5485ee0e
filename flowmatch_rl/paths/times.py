"""Distributions of the flow time that a loss is averaged over."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TimeDistribution(abc.ABC):
    """A distribution on [0, 1], given by its quantile function."""

    @abc.abstractmethod
    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""


@dataclass(frozen=True)
class UniformTime(TimeDistribution):
    """Every flow time alike."""

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
        ValueError: If ``scale`` is not positive.

    Reference:
        Esser et al., arXiv:2403.03206.
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0.0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def quantile(self, uniform: Tensor) -> Tensor:
        """Flow times for uniform noise in [0, 1), any shape."""
        return torch.sigmoid(self.mean + self.scale * torch.special.ndtri(uniform.clamp(1e-7, 1.0 - 1e-7)))
