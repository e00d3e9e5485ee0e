"""Bandits with two actions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.testbeds.bandits.base import PlanarBandit


@dataclass(frozen=True)
class FourModes(PlanarBandit):
    """Four Gaussians at the corners of a square; with unequal weights the coordinates depend on each other.

    Args:
        mode: The modes lie at (+-mode, +-mode); in (0, 1).
        scale: Standard deviation of each Gaussian, positive, in units of the action.
        weights: Weight of each Gaussian before the box cuts them off, positive, in the order (+, +), (+, -), (-, +),
            (-, -) of the signs.

    Raises:
        UserError: If a number is out of its range.
    """

    mode: float = 0.5
    scale: float = 0.15
    weights: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        check_range("(0, 1)", mode=self.mode)
        check_range("(0, inf)", scale=self.scale)
        if len(self.weights) != 4 or not all(0.0 < weight < math.inf for weight in self.weights):
            raise UserError(f"expected four positive weights, got {self.weights}")

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return "four_modes"

    @property
    def length(self) -> float:
        """Standard deviation of a Gaussian."""
        return self.scale

    @property
    def num_modes(self) -> int:
        """Four."""
        return 4

    def value_and_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the weighted sum of the Gaussians (...), and its gradient (..., 2)."""
        self.check_actions("actions", actions)
        signs = actions.new_tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        offsets = self.mode * signs - actions[..., None, :]  # (..., 4, 2)
        logits = actions.new_tensor(self.weights).log() - 0.5 * offsets.square().sum(-1) / self.scale**2
        weights = torch.softmax(logits, dim=-1)
        return torch.logsumexp(logits, dim=-1), (weights[..., None] * offsets).sum(-2) / self.scale**2

    def mode_of(self, actions: Tensor) -> Tensor:
        """The quadrant, in the order of the weights."""
        self.check_actions("actions", actions)
        return 2 * (actions[..., 0] <= 0.0).long() + (actions[..., 1] <= 0.0).long()


@dataclass(frozen=True)
class TwoMoonsEnergy(PlanarBandit):
    """Two interleaved half circles.

    The value is the logarithm of a sum of two terms. Each falls off with the squared distance from its circle, and on
    one side of the circle's centre it is shut off by a sigmoid.

    Args:
        radius: Radius of the circles, positive, in units of the action.
        width: Standard deviation across the arcs, positive; also the width of the sigmoids.

    Raises:
        UserError: If a number is not positive, or the moons do not fit into the box.
    """

    radius: float = 0.5
    width: float = 0.07

    def __post_init__(self) -> None:
        check_range("(0, inf)", width=self.width)
        check_range("(0, 0.6]", radius=self.radius)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return "two_moons"

    @property
    def length(self) -> float:
        """Width of an arc."""
        return self.width

    @property
    def num_modes(self) -> int:
        """Two moons."""
        return 2

    def value_and_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Action value (...) and its gradient (..., 2)."""
        terms, gradients = self._moons(actions)
        weights = torch.softmax(terms, dim=-1)
        return torch.logsumexp(terms, dim=-1), (weights[..., None] * gradients).sum(-2)

    def mode_of(self, actions: Tensor) -> Tensor:
        """The moon of the larger term: 0 for the upper one, 1 for the lower one."""
        return self._moons(actions)[0].argmax(-1)

    def _moons(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms, shape (..., 2), and their gradients, shape (..., 2, 2)."""
        self.check_actions("actions", actions)
        # The circles are a radius apart to the side and half of it in height, as scikit-learn's moons.
        side = actions.new_tensor([1.0, -1.0])  # upper, lower
        centres = -0.5 * self.radius * side[:, None] * actions.new_tensor([1.0, 0.5])
        offset = actions[..., None, :] - centres  # (..., 2, 2)
        distance = offset.norm(dim=-1).clamp_min(torch.finfo(actions.dtype).tiny)
        away = (distance - self.radius) / self.width
        gate = side * offset[..., 1] / self.width
        term = -0.5 * away.square() + torch.nn.functional.logsigmoid(gate)
        across = -(away / (self.width * distance))[..., None] * offset
        along = torch.stack([torch.zeros_like(gate), side / self.width * torch.sigmoid(-gate)], dim=-1)
        return term, across + along
