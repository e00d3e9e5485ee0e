"""Scripted expert policies of the maze: they run around it, or go to one place and rest there.

Rooms are numbered clockwise from the top left; gap i lies between room i and room i + 1.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from flowmatch_rl.checks import check_word
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.processes.maze import ARM_HALF_WIDTH, ARM_LENGTH, free_positions
from flowmatch_rl.testbeds.processes.point_mass import DECAY, HALF_SIZE, MAX_SPEED
from flowmatch_rl.types import Policy, SinglePolicy

Room: TypeAlias = Literal["top_left", "top_right", "bottom_right", "bottom_left"]
"""A room of the maze, by its corner."""

_STIFFNESS = 6.0
"""Wanted velocity per distance from the target, 1/s."""
_GAP = 0.5 * (ARM_LENGTH + HALF_SIZE)
"""Distance of the gaps' middles from the centre."""
_ROOM = 0.5 * HALF_SIZE
"""Distance of the rooms' goals from the centre, along both axes."""
_MARGIN = 0.01
_LEG = 2.0**0.5 * _GAP
"""Distance from one gap to the next."""

_OUTWARD = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))
"""Directions from the centre to the gaps."""
_CLOCKWISE = ((1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.0, 1.0))
"""Directions in which the gaps are passed clockwise."""
_CORNERS = ((-1.0, 1.0), (1.0, 1.0), (1.0, -1.0), (-1.0, -1.0))
"""Directions from the centre to the rooms, by their signs."""


@dataclass(frozen=True)
class MazeLoopPolicy(SinglePolicy):
    """Runs around the maze clockwise without end; a lap takes about 160 steps."""

    is_random: ClassVar = False

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Forces, shape (*batch, 2), for states of shape (*batch, 4)."""
        self.check_embedding(embedding)
        check_shape("observation", observation, (*observation.shape[:-1], 4))
        position = observation[..., :2]
        clockwise = torch.ones(position.shape[:-1], dtype=torch.bool, device=position.device)
        return _force(observation, _next_room(position, _room(position), clockwise))


@dataclass(frozen=True)
class MazeReachPolicy(SinglePolicy):
    """Goes to the middle of a room, through the gaps by the shorter way, and rests there.

    Args:
        room: The room.

    Raises:
        UserError: If there is no such room.
    """

    is_random: ClassVar = False
    room: Room = "top_left"

    def __post_init__(self) -> None:
        check_word(get_args(Room), room=self.room)

    @property
    def goal(self) -> tuple[float, float]:
        """The middle of the room, (x, y)."""
        x, y = _CORNERS[get_args(Room).index(self.room)]
        return _ROOM * x, _ROOM * y

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Forces, shape (*batch, 2), for states of shape (*batch, 4)."""
        self.check_embedding(embedding)
        return _reach(observation, observation.new_tensor(self.goal).expand(*observation.shape[:-1], 2))


@dataclass(frozen=True)
class MazeGoalPolicy(Policy):
    """The family of policies that go to a goal, through the gaps by the shorter way, and rest there (Z = 2).

    The embedding of a member is its goal (x, y) divided by 0.3, so that the arena is [-1, 1]^2. Goals are free
    positions; towards one inside a wall the policy leans against the wall.
    """

    is_random: ClassVar = False

    @property
    def embedding_dim(self) -> int:
        """The goal's position."""
        return 2

    def embeddings(self, uniform: Tensor) -> Tensor:
        """Goals uniform over the free space, shape (B, 2)."""
        return free_positions(uniform) / HALF_SIZE

    def act(
        self, observation: Tensor, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Forces, shape (*batch, 2), for states of shape (*batch, 4) and goals of shape (*batch, 2)."""
        if embedding is None:
            raise ValueError("expected goals of shape (*batch, 2), got no embedding")
        check_shape("embedding", embedding, (*observation.shape[:-1], 2))
        return _reach(observation, HALF_SIZE * embedding.to(observation))


def _reach(observation: Tensor, goal: Tensor) -> Tensor:
    """Force towards a goal, both of batch shape (*batch)."""
    check_shape("observation", observation, (*observation.shape[:-1], 4))
    position = observation[..., :2]
    room, goal_room = _room(position), _room(goal)
    ahead = (goal_room - room) % 4
    forward = _way_length(position, room, goal, goal_room, ahead, clockwise=True)
    backward = _way_length(position, room, goal, goal_room, (4 - ahead) % 4, clockwise=False)
    elsewhere = _next_room(position, room, forward <= backward)
    target = torch.where((ahead == 0)[..., None], _within_room(position, room, goal), elsewhere)
    return _force(observation, target)


def _force(observation: Tensor, target: Tensor) -> Tensor:
    """Force that brings the velocity, in one step if it can, to one straight towards the target."""
    offset = target - observation[..., :2]
    speed = (MAX_SPEED / offset.abs().amax(-1, keepdim=True)).clamp_max(_STIFFNESS)
    force = (speed * offset - DECAY * observation[..., 2:]) / ((1.0 - DECAY) * MAX_SPEED)
    return force.clamp(-1.0, 1.0)


def _room(position: Tensor) -> Tensor:
    """Number of the room, int64, shape (*batch): the quadrant."""
    right, top = position[..., 0] >= 0.0, position[..., 1] >= 0.0
    return torch.where(top, right.long(), 3 - right.long())


def _next_room(position: Tensor, room: Tensor, clockwise: Tensor) -> Tensor:
    """Point to head for on the way to the next room, clockwise or counterclockwise, shape (*batch, 2)."""
    gap = torch.where(clockwise, room, (room + 3) % 4)
    outward, along = position.new_tensor(_OUTWARD)[gap], position.new_tensor(_CLOCKWISE)[gap]
    along = torch.where(clockwise[..., None], along, -along)
    in_line = ((position * outward).sum(-1) > ARM_LENGTH + _MARGIN)[..., None]
    # First in front of the gap, then well beyond it, so as not to slow down there.
    return _GAP * outward + torch.where(in_line, 0.1, -0.06) * along


def _within_room(position: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """Point to head for on the way to a goal in the same room, around the ends of the arms, shape (*batch, 2)."""
    sign = position.new_tensor(_CORNERS)[room]
    here, there, target = position * sign, goal * sign, goal
    for across, outward in ((0, 1), (1, 0)):
        # Just where a straight line becomes free: with a margin, a goal close to the end of an arm is never reached.
        leaves = (here[..., across] < ARM_HALF_WIDTH) & (here[..., outward] >= ARM_LENGTH)
        leaves = leaves & (there[..., outward] < ARM_LENGTH)
        enters = (there[..., across] < ARM_HALF_WIDTH) & (here[..., outward] < ARM_LENGTH)
        corner = [0.0, 0.0]
        corner[across], corner[outward] = ARM_HALF_WIDTH + 4.0 * _MARGIN, ARM_LENGTH + 3.0 * _MARGIN
        target = torch.where((leaves | enters)[..., None], sign * position.new_tensor(corner), target)
    return target


def _way_length(
    position: Tensor, room: Tensor, goal: Tensor, goal_room: Tensor, num_gaps: Tensor, clockwise: bool
) -> Tensor:
    """Length of the way through the middles of the gaps in one direction, shape (*batch)."""
    gaps = _GAP * position.new_tensor(_OUTWARD)
    first, last = (room, (goal_room + 3) % 4) if clockwise else ((room + 3) % 4, goal_room)
    ends = (position - gaps[first]).norm(dim=-1) + (gaps[last] - goal).norm(dim=-1)
    return ends + (num_gaps - 1) * _LEG
