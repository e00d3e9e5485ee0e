"""A damped point mass that walls stop, and a room with walls of one's own."""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.processes.planar import PlanarProcess

HALF_SIZE = 0.3
"""Half the side of the square arena."""
STEP_S = 0.02
"""Duration of a step, seconds."""
MAX_SPEED = 0.4
"""Speed per axis that full force leads to, units per second."""
DECAY = 0.9
"""Factor by which damping shrinks the velocity in a step."""

Box = tuple[float, float, float, float]
"""A wall: x_low, y_low, x_high, y_high."""


class PointMass(PlanarProcess, abc.ABC):
    """A damped point mass with state (x, y, vx, vy) in the square [-0.3, 0.3]^2, pushed by a force (A = 2).

    A step takes 0.02 s: the velocity becomes ``0.9 v + 0.1 * 0.4 a``, and the point moves along x and then along y
    until a wall stops it, which sets that part of its velocity to 0; along the wall it slides. The dynamics are
    deterministic, and never end.

    Attributes:
        action_repeat: Steps of 0.02 s that each action is held for; they count as one.
    """

    action_repeat: int

    @property
    @abc.abstractmethod
    def boxes(self) -> tuple[Box, ...]:
        """The walls."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Position and velocity."""
        return ("x", "y", "vx", "vy")

    @property
    def action_dim(self) -> int:
        """A force along x and y."""
        return 2

    @property
    def half_width(self) -> float:
        """Half the side of the arena."""
        return HALF_SIZE

    def walls(self) -> Tensor:
        """The walls, float64, shape (W, 4)."""
        return torch.tensor(self.boxes, dtype=torch.float64).reshape(-1, 4)

    def is_free(self, position: Tensor) -> Tensor:
        """Whether positions (*batch, 2) are in the arena and not inside a wall, boolean, shape (*batch)."""
        check_shape("position", position, (*position.shape[:-1], 2))
        boxes = self.walls().to(position)
        point = position[..., None, :]
        inside = ((point > boxes[:, :2]) & (point < boxes[:, 2:])).all(-1).any(-1)
        return (position.abs() <= position.new_tensor(HALF_SIZE)).all(-1) & ~inside

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step, see the class; the noise is not used and no state is terminal."""
        check_shape("state", state, (*state.shape[:-1], 4))
        check_shape("action", action, (*state.shape[:-1], 2))
        for _ in range(self.action_repeat):
            state = _move(state, action, self.boxes)
        return state, torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)


@dataclass(frozen=True)
class PointMassRoom(PointMass):
    """A point mass in a room with walls of one's own, which starts at rest near one place.

    Args:
        walls_at: Walls as boxes (x_low, y_low, x_high, y_high) in the square [-0.3, 0.3]^2.
        start_at: Middle of the initial positions.
        start_half_width: Half the side of the square of them, in which they are uniform; 0 for a single one.
        action_repeat: Steps of 0.02 s that each action is held for, at least 1; they count as one.

    Raises:
        UserError: If a number is out of its range, a wall is empty, or an initial position would be in a wall.
    """

    label: ClassVar[str] = "point-mass-room"

    walls_at: tuple[Box, ...] = ()
    start_at: tuple[float, float] = (0.0, 0.0)
    start_half_width: float = 0.02
    action_repeat: int = 4

    def __post_init__(self) -> None:
        check_range("[1, inf)", action_repeat=self.action_repeat)
        check_range(f"[0, {HALF_SIZE}]", start_half_width=self.start_half_width)
        check_walls(self.walls_at)
        low, high = (
            torch.tensor(self.start_at, dtype=torch.float64) + side * self.start_half_width for side in (-1.0, 1.0)
        )
        walls = self.walls()
        blocked = ((high > walls[:, :2]) & (low < walls[:, 2:])).all(-1).any() if len(walls) else False
        if blocked or bool((low < -HALF_SIZE).any() | (high > HALF_SIZE).any()):
            raise UserError(
                f"initial positions must be free and in [-{HALF_SIZE}, {HALF_SIZE}]^2; start_at {self.start_at} with "
                f"start_half_width {self.start_half_width:g} is not, with the walls {self.walls_at}"
            )

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The walls."""
        return self.walls_at

    @property
    def noise_dim(self) -> int:
        """Two for the initial position; a step ignores them."""
        return 2

    def start(self, noise: Tensor) -> Tensor:
        """Positions uniform in the square of the start, at rest."""
        check_shape("noise", noise, (*noise.shape[:-1], self.noise_dim))
        position = noise.new_tensor(self.start_at) + self.start_half_width * (2.0 * torch.special.ndtr(noise) - 1.0)
        return torch.cat([position, torch.zeros_like(position)], dim=-1)


def check_walls(walls: tuple[Box, ...]) -> None:
    """Check that no wall is empty.

    Args:
        walls: The walls.

    Raises:
        UserError: If one is, naming it.
    """
    for box in walls:
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            raise UserError(f"a wall is x_low, y_low, x_high, y_high, each low less than its high; got {box}")


def _move(state: Tensor, action: Tensor, boxes: tuple[Box, ...]) -> Tensor:
    """States (*batch, 4) after 0.02 s under forces (*batch, 2)."""
    velocity = DECAY * state[..., 2:] + (1.0 - DECAY) * MAX_SPEED * action
    wanted = state[..., :2] + STEP_S * velocity
    x = _slide(state[..., 0], wanted[..., 0], state[..., 1], 0, boxes)
    y = _slide(state[..., 1], wanted[..., 1], x, 1, boxes)
    position = torch.stack([x, y], dim=-1)
    return torch.cat([position, velocity.masked_fill(position != wanted, 0.0)], dim=-1)


def _slide(start: Tensor, wanted: Tensor, across: Tensor, axis: int, boxes: tuple[Box, ...]) -> Tensor:
    """Where a move along an axis ends, from ``start`` towards ``wanted`` at the coordinate ``across``, all (*batch)."""
    end = wanted.clamp(-HALF_SIZE, HALF_SIZE)
    for box in boxes:
        # Bounds in the precision of the state, so that a point at rest on a wall compares equal to it.
        low, high, across_low, across_high = start.new_tensor([box[i] for i in (axis, axis + 2, 1 - axis, 3 - axis)])
        beside = (across > across_low) & (across < across_high)
        end = torch.where(beside & (start <= low), end.minimum(low), end)
        end = torch.where(beside & (start >= high), end.maximum(high), end)
    return end
