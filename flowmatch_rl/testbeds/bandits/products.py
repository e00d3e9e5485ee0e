"""Bandits in any dimension whose distribution is a product."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.testbeds.bandits.base import ProductBandit

COUNTED_DIMENSIONS = 16
"""Coordinates whose signs tell the modes of ``Bimodal`` apart at most: their number is two to this power."""


@dataclass(frozen=True)
class Bimodal(ProductBandit):
    """Two equal Gaussians in each coordinate: 2^D equal modes at the corners of a cube.

    Modes are told apart, and counted, by the signs of the first sixteen coordinates.

    Args:
        dimensions: Dimension D of the action, at least 1.
        mode: The modes lie at plus and minus this; in (0, 1).
        scale: Standard deviation of each Gaussian, positive, in units of the action.

    Raises:
        UserError: If a number is out of its range.
    """

    dimensions: int = 6
    mode: float = 0.5
    scale: float = 0.15

    def __post_init__(self) -> None:
        check_range("[1, inf)", dimensions=self.dimensions)
        check_range("(0, 1)", mode=self.mode)
        check_range("(0, inf)", scale=self.scale)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return f"bimodal_{self.dimensions}d"

    @property
    def length(self) -> float:
        """Standard deviation of a Gaussian."""
        return self.scale

    @property
    def num_modes(self) -> int:
        """Two to the power of the dimension, or of sixteen where that is less."""
        return 2 ** min(self.dimensions, COUNTED_DIMENSIONS)

    def coordinate_value(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the sum of the two Gaussians, and its derivative."""
        # log(exp(-(a - m)^2 / 2 s^2) + exp(-(a + m)^2 / 2 s^2)), the larger exponent taken out.
        square = self.scale**2
        pull = 2.0 * self.mode * a / square
        value = -0.5 * (a.abs() - self.mode).square() / square + torch.nn.functional.softplus(-pull.abs())
        return value, (self.mode * torch.tanh(0.5 * pull) - a) / square

    def mode_of(self, actions: Tensor) -> Tensor:
        """The signs of the coordinates, the first sixteen at most, read as a binary number."""
        self.check_actions("actions", actions)
        positive = (actions[..., :COUNTED_DIMENSIONS] > 0.0).long()
        return (positive << torch.arange(positive.shape[-1], device=actions.device)).sum(-1)


@dataclass(frozen=True)
class OneModeBandit(ProductBandit, abc.ABC):
    """A product whose distribution is in one piece."""

    @property
    def num_modes(self) -> int:
        """One."""
        return 1

    def mode_of(self, actions: Tensor) -> Tensor:
        """Zero."""
        self.check_actions("actions", actions)
        return torch.zeros_like(actions[..., 0], dtype=torch.long)


@dataclass(frozen=True)
class Flat(OneModeBandit):
    """A value of zero: the distribution is uniform on the box.

    Args:
        dimensions: Dimension D of the action, at least 1.

    Raises:
        UserError: If ``dimensions`` is below 1.
    """

    dimensions: int = 6

    def __post_init__(self) -> None:
        check_range("[1, inf)", dimensions=self.dimensions)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return f"flat_{self.dimensions}d"

    @property
    def length(self) -> float:
        """Nothing changes: infinite."""
        return math.inf

    def coordinate_value(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Zero, and zero."""
        return torch.zeros_like(a), torch.zeros_like(a)


@dataclass(frozen=True)
class Quadratic(OneModeBandit):
    """``-|a - centre|^2 / (2 scale^2)``: the distribution is a Gaussian cut off at the box.

    Args:
        dimensions: Dimension D of the action, at least 1.
        centre: Best value of each coordinate, in units of the action, in [-1, 1].
        scale: Standard deviation of the Gaussian at temperature 1, positive.

    Raises:
        UserError: If a number is out of its range.
    """

    dimensions: int = 2
    centre: float = 0.4
    scale: float = 0.3

    def __post_init__(self) -> None:
        check_range("[1, inf)", dimensions=self.dimensions)
        check_range("[-1, 1]", centre=self.centre)
        check_range("(0, inf)", scale=self.scale)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return f"quadratic_{self.dimensions}d"

    @property
    def length(self) -> float:
        """Standard deviation of the Gaussian."""
        return self.scale

    def coordinate_value(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The square, and its derivative."""
        away = (a - self.centre) / self.scale
        return -0.5 * away.square(), -away / self.scale
