"""A point mass in four rooms that are joined in a ring."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.processes.planar import PlanarProcess

HALF_SIZE = 0.3
"""Half the side of the square arena."""
ARM_LENGTH = 0.18
"""Length of each of the four arms of the wall, from the centre; the gap beyond it joins two rooms."""
ARM_HALF_WIDTH = 0.02
"""Half the thickness of the arms."""
STEP_S = 0.02
"""Duration of a step, seconds."""
MAX_SPEED = 0.4
"""Speed per axis that full force leads to, units per second."""
DECAY = 0.9
"""Factor by which damping shrinks the velocity in a step."""

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
class PointMassMaze(PlanarProcess):
    """A damped point mass with state (x, y, vx, vy) in the square [-0.3, 0.3]^2, pushed by a force (A = 2).

    A wall in the shape of a cross stands in the middle and leaves gaps at the outer wall, so that the four rooms form
    a ring. A step takes 0.02 s: the velocity becomes ``0.9 v + 0.1 * 0.4 a``, and the point moves along x and then
    along y until a wall stops it, which sets that part of its velocity to 0; along the wall it slides. From the middle
    of a room to that of the next it takes about 40 steps. The dynamics are deterministic, and never end.

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
    def columns(self) -> tuple[str, ...]:
        """Position and velocity."""
        return ("x", "y", "vx", "vy")

    @property
    def action_dim(self) -> int:
        """A force along x and y."""
        return 2

    @property
    def noise_dim(self) -> int:
        """Two for the initial position and two for the initial velocity; a step ignores them."""
        return 4

    @property
    def half_width(self) -> float:
        """Half the side of the arena."""
        return HALF_SIZE

    def walls(self) -> Tensor:
        """The two bars of the cross, float64, shape (2, 4)."""
        return torch.tensor(_WALLS, dtype=torch.float64)

    def is_free(self, position: Tensor) -> Tensor:
        """Whether positions (*batch, 2) are in the arena and not inside a wall, boolean, shape (*batch)."""
        check_shape("position", position, (*position.shape[:-1], 2))
        boxes = position.new_tensor(_WALLS)
        point = position[..., None, :]
        inside = ((point > boxes[:, :2]) & (point < boxes[:, 2:])).all(-1).any(-1)
        return (position.abs() <= position.new_tensor(HALF_SIZE)).all(-1) & ~inside

    def start(self, noise: Tensor) -> Tensor:
        """Free positions and velocities, uniform."""
        check_shape("noise", noise, (*noise.shape[:-1], self.noise_dim))
        uniform = torch.special.ndtr(noise)
        velocity = self.start_speed * (2.0 * uniform[..., 2:] - 1.0)
        return torch.cat([free_positions(uniform[..., :2]), velocity], dim=-1)

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step, see the class; the noise is not used and no state is terminal."""
        check_shape("state", state, (*state.shape[:-1], 4))
        check_shape("action", action, (*state.shape[:-1], 2))
        for _ in range(self.action_repeat):
            state = _move(state, action)
        return state, torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)


def _move(state: Tensor, action: Tensor) -> Tensor:
    """States (*batch, 4) after 0.02 s under forces (*batch, 2)."""
    velocity = DECAY * state[..., 2:] + (1.0 - DECAY) * MAX_SPEED * action
    wanted = state[..., :2] + STEP_S * velocity
    x = _slide(state[..., 0], wanted[..., 0], state[..., 1], 0)
    y = _slide(state[..., 1], wanted[..., 1], x, 1)
    position = torch.stack([x, y], dim=-1)
    return torch.cat([position, velocity.masked_fill(position != wanted, 0.0)], dim=-1)


def _slide(start: Tensor, wanted: Tensor, across: Tensor, axis: int) -> Tensor:
    """Where a move along an axis ends, from ``start`` towards ``wanted`` at the coordinate ``across``, all (*batch)."""
    end = wanted.clamp(-HALF_SIZE, HALF_SIZE)
    for box in _WALLS:
        # Bounds in the precision of the state, so that a point at rest on a wall compares equal to it.
        low, high, across_low, across_high = start.new_tensor([box[i] for i in (axis, axis + 2, 1 - axis, 3 - axis)])
        beside = (across > across_low) & (across < across_high)
        end = torch.where(beside & (start <= low), end.minimum(low), end)
        end = torch.where(beside & (start >= high), end.maximum(high), end)
    return end
