"""Densities in the plane, at the scales the literature draws them, with exact log-densities."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from flowmatch_rl.checks import check_range

_PANEL_NODES, _PANEL_LENGTH = 32, 6.0
"""Gauss-Legendre nodes per stretch of curve, and its length in standard deviations of the noise: errors are below 1e-10
of the density within twenty standard deviations of the curve."""

_MAX_ELEMENTS = 4_000_000
"""Largest table of points by quadrature nodes held at once; bounds memory."""


@dataclass(frozen=True)
class PlanarDensity(abc.ABC):
    """A density in the plane, a mixture of parts of equal weight.

    Attributes:
        label: Short name, for titles and run names.
        columns: Names of the two coordinates.
    """

    label: ClassVar[str]
    columns: ClassVar[tuple[str, str]] = ("x", "y")

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the parts."""

    @abc.abstractmethod
    def draw(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point of each of the given parts.

        Args:
            part: Indices into ``parts``, shape (B,).
            generator: Source of randomness, on the CPU.

        Returns:
            Points, float64, shape (B, 2).
        """

    @abc.abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats, shape (B,), of points of shape (B, 2) in double precision."""

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw independent points.

        Args:
            number: Number B of points.
            generator: Source of randomness, on the CPU.

        Returns:
            Points, float64, shape (B, 2), and the indices of their parts, shape (B,).
        """
        part = torch.randint(len(self.parts), (number,), generator=generator)
        return self.draw(part, generator), part

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points.

        Args:
            x: Points, shape (B, 2).

        Returns:
            Log-density in nats, float64, shape (B,); minus infinity where the density is zero.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError(f"points in the plane must have shape (B, 2), got {tuple(x.shape)}")
        return self.log_density(x.double())


@dataclass(frozen=True)
class TwoMoons(PlanarDensity):
    """Two interleaved half circles of radius 1, with Gaussian noise; scikit-learn's ``make_moons``.

    The log-density is an integral along the half circles, evaluated by quadrature: exact to about 1e-10.

    Args:
        noise: Standard deviation of the noise, positive.
    """

    label: ClassVar[str] = "two_moons"

    noise: float = 0.1

    def __post_init__(self) -> None:
        check_range("(0, inf)", noise=self.noise)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts."""
        return "upper", "lower"

    def draw(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point of each of the given parts, shape (B, 2)."""
        fraction = torch.rand(part.shape, generator=generator, dtype=torch.float64)
        return _blur(self._curve(part, fraction), self.noise, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats of points of shape (B, 2); returns shape (B,)."""
        fraction, weight = _quadrature(math.pi / self.noise, x.device)
        part = torch.arange(2, device=x.device).unsqueeze(1)
        curve = self._curve(part.expand(-1, len(fraction)), fraction.expand(2, -1))
        return _blurred_log_density(x, curve, (weight / 2).expand(2, -1), self.noise)

    def _curve(self, part: Tensor, fraction: Tensor) -> Tensor:
        """Points a fraction in [0, 1] of the way along each half circle, shape (..., 2)."""
        sign = 1.0 - 2.0 * part.double()
        cos, sin = torch.cos(math.pi * fraction), torch.sin(math.pi * fraction)
        return torch.stack([part + sign * cos, 0.5 * part + sign * sin], -1)


@dataclass(frozen=True)
class EightGaussians(PlanarDensity):
    """Eight isotropic Gaussians, evenly spaced on a circle.

    Args:
        radius: Radius of the circle, positive.
        scale: Standard deviation of each Gaussian, positive.
    """

    label: ClassVar[str] = "eight_gaussians"

    radius: float = 5.0
    # Not "noise": the command line hands an argument on to the next class that has one of its name.
    scale: float = 0.3

    def __post_init__(self) -> None:
        check_range("(0, inf)", radius=self.radius, scale=self.scale)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, counter-clockwise from the positive x axis."""
        return _numbered(8)

    def draw(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point of each of the given parts, shape (B, 2)."""
        return _blur(self._centres(part), self.scale, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats of points of shape (B, 2); returns shape (B,)."""
        centres = self._centres(torch.arange(8, device=x.device))
        return _blurred_log_density(x, centres, torch.full_like(centres[:, 0], 1 / 8), self.scale)

    def _centres(self, part: Tensor) -> Tensor:
        return self.radius * _direction(math.tau / 8 * part.double())


@dataclass(frozen=True)
class Checkerboard(PlanarDensity):
    """Uniform on every other square of a board centred at the origin, the lower left one among them.

    Args:
        half_width: Half the side of the board, positive.
        squares_per_side: Squares along a side, at least 1.
    """

    label: ClassVar[str] = "checkerboard"

    half_width: float = 4.0
    squares_per_side: int = 4

    def __post_init__(self) -> None:
        check_range("[1, inf)", squares_per_side=self.squares_per_side)
        check_range("(0, inf)", half_width=self.half_width)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the occupied squares, row by row from the lower left."""
        return _numbered((self.squares_per_side**2 + 1) // 2)

    def draw(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point of each of the given parts, shape (B, 2)."""
        occupied = [
            (i, j) for j in range(self.squares_per_side) for i in range(self.squares_per_side) if not (i + j) % 2
        ]
        within = torch.rand(*part.shape, 2, generator=generator, dtype=torch.float64)
        return (torch.tensor(occupied)[part] + within) * self._side - self.half_width

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats of points of shape (B, 2); returns shape (B,)."""
        square = torch.floor((x + self.half_width) / self._side)
        inside = ((square >= 0) & (square < self.squares_per_side)).all(1) & (square.sum(1) % 2 == 0)
        log_area = math.log(len(self.parts) * self._side**2)
        return torch.full_like(x[:, 0], -log_area).masked_fill(~inside, -math.inf)

    @property
    def _side(self) -> float:
        return 2.0 * self.half_width / self.squares_per_side


@dataclass(frozen=True)
class Rings(PlanarDensity):
    """Concentric circles of equally spaced radii, with Gaussian noise.

    Args:
        num_rings: Number of circles, at least 1.
        radius: Radius of the outermost, positive.
        noise: Standard deviation of the noise, positive.
    """

    label: ClassVar[str] = "rings"

    num_rings: int = 4
    radius: float = 3.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_rings=self.num_rings)
        check_range("(0, inf)", radius=self.radius, noise=self.noise)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the rings, from the innermost."""
        return _numbered(self.num_rings)

    def draw(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point of each of the given parts, shape (B, 2)."""
        angle = math.tau * torch.rand(part.shape, generator=generator, dtype=torch.float64)
        return _blur(self._radius(part).unsqueeze(-1) * _direction(angle), self.noise, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats of points of shape (B, 2); returns shape (B,)."""
        ring = self._radius(torch.arange(self.num_rings, device=x.device))
        distance = x.norm(dim=1, keepdim=True)  # (B, 1)
        # The integral of the Gaussian over the circle is a Bessel function; scaled, it does not overflow.
        bessel = torch.special.i0e(distance * ring / self.noise**2)
        log_prob = bessel.log() - (distance - ring).square() / (2.0 * self.noise**2)
        return log_prob.logsumexp(1) - math.log(self.num_rings * math.tau * self.noise**2)

    def _radius(self, part: Tensor) -> Tensor:
        return self.radius * (part.double() + 1.0) / self.num_rings


@dataclass(frozen=True)
class Spirals(PlanarDensity):
    """Spirals that leave the origin in evenly spaced directions, with Gaussian noise.

    The distance from the origin grows with the angle, and is distributed as in a uniform disc. The log-density is an
    integral along the arms, evaluated by quadrature: exact to about 1e-10.

    Args:
        num_arms: Number of spirals, at least 1.
        turns: Turns of each about the origin, positive.
        radius: Distance of their ends from the origin, positive.
        noise: Standard deviation of the noise, positive.
    """

    label: ClassVar[str] = "spirals"

    num_arms: int = 2
    turns: float = 1.5
    radius: float = 3.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_arms=self.num_arms)
        check_range("(0, inf)", turns=self.turns, radius=self.radius, noise=self.noise)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the arms."""
        return _numbered(self.num_arms)

    def draw(self, part: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point of each of the given parts, shape (B, 2)."""
        fraction = torch.rand(part.shape, generator=generator, dtype=torch.float64).sqrt()
        return _blur(self._curve(part, fraction), self.noise, generator)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density in nats of points of shape (B, 2); returns shape (B,)."""
        speed = self.radius * math.hypot(1.0, math.tau * self.turns)  # at the end, where it is largest
        fraction, weight = _quadrature(speed / self.noise, x.device)
        part = torch.arange(self.num_arms, device=x.device).unsqueeze(1)
        curve = self._curve(part, fraction)
        weight = 2.0 * fraction * weight / self.num_arms
        return _blurred_log_density(x, curve, weight.expand(self.num_arms, -1), self.noise)

    def _curve(self, part: Tensor, fraction: Tensor) -> Tensor:
        """Points at a fraction in [0, 1] of the radius on each arm, shape (..., 2)."""
        angle = math.tau * (self.turns * fraction + part.double() / self.num_arms)
        return self.radius * fraction.unsqueeze(-1) * _direction(angle)


def _numbered(number: int) -> tuple[str, ...]:
    return tuple(map(str, range(number)))


def _direction(angle: Tensor) -> Tensor:
    """Unit vectors, shape (..., 2)."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def _blur(points: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return points + noise * torch.randn(points.shape, generator=generator, dtype=torch.float64)


def _quadrature(length: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and their weights, each of shape (M,), for a curve this many standard deviations long."""
    panels = math.ceil(length / _PANEL_LENGTH)
    node, weight = (torch.from_numpy(array).to(device) for array in np.polynomial.legendre.leggauss(_PANEL_NODES))
    start = torch.arange(panels, dtype=torch.float64, device=device).unsqueeze(1)
    return ((start + 0.5 * (node + 1.0)) / panels).flatten(), (0.5 * weight / panels).repeat(panels)


def _blurred_log_density(x: Tensor, centres: Tensor, weights: Tensor, noise: float) -> Tensor:
    """Log-density of a mixture of isotropic Gaussians.

    Args:
        x: Points, shape (B, 2).
        centres: Means, shape (..., 2).
        weights: Their weights, which sum to 1, shape (...).
        noise: Common standard deviation.

    Returns:
        Log-density in nats, shape (B,).
    """
    centres = centres.reshape(-1, 2)
    log_weight = weights.log().flatten() - math.log(math.tau * noise**2)

    def log_density(some: Tensor) -> Tensor:
        exponent = (some[:, :1] - centres[:, 0]).square_()
        exponent += (some[:, 1:] - centres[:, 1]).square_()
        return exponent.mul_(-0.5 / noise**2).add_(log_weight).logsumexp(1)

    pieces = x.split(max(1, _MAX_ELEMENTS // len(centres)))
    return torch.cat([log_density(piece) for piece in pieces])
