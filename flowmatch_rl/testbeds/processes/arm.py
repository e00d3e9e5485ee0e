"""An arm of two links in the plane that walls stop."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.processes.planar import PlanarProcess
from flowmatch_rl.testbeds.processes.point_mass import Box, check_walls

LINK = 0.15
"""Length of each link."""
MAX_TURN = 0.06
"""Angle that a joint turns by in a step of 0.02 s at full speed, radians."""


@dataclass(frozen=True)
class ReachingArm(PlanarProcess):
    """An arm of two links of 0.15 in the plane, with state (x, y, shoulder, elbow), moved by its joints (A = 2).

    (x, y) is the tip, and the shoulder's joint is the origin. With both angles at 0 the arm is stretched to the left;
    both stay in [-pi, pi]. An action gives the velocities of shoulder and elbow. A step takes 0.02 s: the shoulder
    turns by up to 0.06 radians, then the elbow does; a turn that would bring a link into a wall is not made. The
    dynamics are deterministic, and never end.

    Args:
        walls_at: Walls as boxes (x_low, y_low, x_high, y_high), in the unit of the links.
        start_half_width: Half the side of the square of initial angles around 0, in which they are uniform, radians.
        action_repeat: Steps of 0.02 s that each action is held for, at least 1; they count as one.

    Raises:
        UserError: If a number is out of its range, a wall is empty, or the stretched arm would be in a wall.
    """

    label: ClassVar[str] = "reaching-arm"

    walls_at: tuple[Box, ...] = ()
    start_half_width: float = 0.02
    action_repeat: int = 4

    def __post_init__(self) -> None:
        check_range("[1, inf)", action_repeat=self.action_repeat)
        check_range("[0, 1]", start_half_width=self.start_half_width)
        check_walls(self.walls_at)
        corners = self.start_half_width * torch.cartesian_prod(*[torch.linspace(-1.0, 1.0, 3)] * 2)
        if bool(self.touches(corners).any()):
            raise UserError(f"the arm must start outside of walls, stretched to the left; got walls {self.walls_at}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Position of the tip, and the two angles."""
        return ("x", "y", "shoulder", "elbow")

    @property
    def action_dim(self) -> int:
        """Velocities of shoulder and elbow, as fractions of 3 radians per second."""
        return 2

    @property
    def noise_dim(self) -> int:
        """Two for the initial angles; a step ignores them."""
        return 2

    @property
    def half_width(self) -> float:
        """The length of the stretched arm."""
        return 2.0 * LINK

    def walls(self) -> Tensor:
        """The walls, float64, shape (W, 4)."""
        return torch.tensor(self.walls_at, dtype=torch.float64).reshape(-1, 4)

    def start(self, noise: Tensor) -> Tensor:
        """Angles uniform in the square of the start, shape (*batch, 4)."""
        check_shape("noise", noise, (*noise.shape[:-1], self.noise_dim))
        return _state(self.start_half_width * (2.0 * torch.special.ndtr(noise) - 1.0))

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step, see the class; the noise is not used and no state is terminal."""
        check_shape("state", state, (*state.shape[:-1], 4))
        check_shape("action", action, (*state.shape[:-1], 2))
        angles = state[..., 2:]
        for _ in range(self.action_repeat):
            for joint in torch.eye(2, dtype=state.dtype, device=state.device):
                turned = (angles + MAX_TURN * joint * action).clamp(-math.pi, math.pi)
                angles = torch.where(self.touches(turned)[..., None], angles, turned)
        return _state(angles), torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)

    def touches(self, angles: Tensor) -> Tensor:
        """Whether a link is in a wall, for angles (*batch, 2), boolean, shape (*batch)."""
        boxes = self.walls().to(angles)
        joints = torch.stack([torch.zeros_like(angles), *_joints(angles)], dim=-2)
        start, along = joints[..., :-1, None, :], joints.diff(dim=-2)[..., None, :]
        # Parts of the segment start + s along, 0 <= s <= 1, that are between the sides of a wall, per coordinate.
        along = torch.where(along.abs() < 1e-9, 1e-9, along)
        ends = torch.stack([(boxes[:, :2] - start) / along, (boxes[:, 2:] - start) / along])
        enters, leaves = ends.amin(0).amax(-1).clamp_min(0.0), ends.amax(0).amin(-1).clamp_max(1.0)
        return (enters < leaves).flatten(-2).any(-1)


def _joints(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the elbow and the tip, each (*batch, 2), for angles (*batch, 2)."""
    places, place = [], torch.zeros_like(angles)
    for direction in angles.cumsum(-1).unbind(-1):
        place = place - LINK * torch.stack([direction.cos(), direction.sin()], dim=-1)
        places.append(place)
    return places[0], places[1]


def _state(angles: Tensor) -> Tensor:
    return torch.cat([_joints(angles)[1], angles], dim=-1)
