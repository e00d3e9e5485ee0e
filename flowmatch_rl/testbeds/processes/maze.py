"""A point mass in four rooms that are joined in a ring."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.processes.point_mass import HALF_SIZE, MAX_SPEED, Box, PointMass

ARM_LENGTH = 0.18
"""Length of each of the four arms of the wall, from the centre; the gap beyond it joins two rooms."""
ARM_HALF_WIDTH = 0.02
"""Half the thickness of the arms."""

_WALLS = (
    (-ARM_HALF_WIDTH, -ARM_LENGTH, ARM_HALF_WIDTH, ARM_LENGTH),
    (-ARM_LENGTH, -ARM_HALF_WIDTH, ARM_LENGTH, ARM_HALF_WIDTH),
)
_BOTTOM, _TOP = (-HALF_SIZE, -ARM_HALF_WIDTH), (ARM_HALF_WIDTH, HALF_SIZE)
_FREE = (
    *((x_low, y_low, x_high, y_high) for x_low, x_high in (_BOTTOM, _TOP) for y_low, y_high in (_BOTTOM, _TOP)),
    (-ARM_HALF_WIDTH, ARM_LENGTH, ARM_HALF_WIDTH, HALF_SIZE),
    (-ARM_HALF_WIDTH, -HALF_SIZE, ARM_HALF_WIDTH, -ARM_LENGTH),
    (ARM_LENGTH, -ARM_HALF_WIDTH, HALF_SIZE, ARM_HALF_WIDTH),
    (-HALF_SIZE, -ARM_HALF_WIDTH, -ARM_LENGTH, ARM_HALF_WIDTH),
)
"""Boxes that make up the free space without overlap: the rooms and the gaps between them."""


def free_positions(uniform: Tensor) -> Tensor:
    """Positions uniform over the free space of the maze.

    Args:
        uniform: Uniform noise in [0, 1), shape (*batch, 2).

    Returns:
        Positions, shape (*batch, 2).
    """
    check_shape("uniform", uniform, (*uniform.shape[:-1], 2))
    boxes = uniform.new_tensor(_FREE)
    size = boxes[:, 2:] - boxes[:, :2]
    bounds = size.prod(-1).cumsum(0)
    area = uniform[..., 0].contiguous() * bounds[-1]
    part = torch.searchsorted(bounds, area, right=True).clamp_max(len(bounds) - 1)
    # The remainder of the number that chose the box is uniform within it.
    remainder = 1.0 - (bounds[part] - area) / size.prod(-1)[part]
    return boxes[part, :2] + size[part] * torch.stack([remainder.clamp(0.0, 1.0), uniform[..., 1]], dim=-1)


@dataclass(frozen=True)
class PointMassMaze(PointMass):
    """A point mass in the square [-0.3, 0.3]^2, in which four rooms form a ring.

    A wall in the shape of a cross stands in the middle and leaves gaps at the outer wall. From the middle of a room to
    that of the next it takes about 40 steps.

    Args:
        start_speed: Initial velocities are uniform in [-start_speed, start_speed] per axis, in units per second; 0 for
            starts at rest. Positions are uniform over the free space.
        action_repeat: Steps of 0.02 s that each action is held for, at least 1; they count as one.

    Raises:
        UserError: If ``start_speed`` is not in [0, 0.4], or ``action_repeat`` is below 1.
    """

    label: ClassVar[str] = "point-mass-maze"

    start_speed: float = 0.0
    action_repeat: int = 1

    def __post_init__(self) -> None:
        check_range("[1, inf)", action_repeat=self.action_repeat)
        check_range(f"[0, {MAX_SPEED}]", start_speed=self.start_speed)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The two bars of the cross."""
        return _WALLS

    @property
    def noise_dim(self) -> int:
        """Two for the initial position and two for the initial velocity; a step ignores them."""
        return 4

    def start(self, noise: Tensor) -> Tensor:
        """Free positions and velocities, uniform."""
        check_shape("noise", noise, (*noise.shape[:-1], self.noise_dim))
        uniform = torch.special.ndtr(noise)
        velocity = self.start_speed * (2.0 * uniform[..., 2:] - 1.0)
        return torch.cat([free_positions(uniform[..., :2]), velocity], dim=-1)
