"""A walk around a circle."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.testbeds.processes.cells import CellProcess


@dataclass(frozen=True)
class RingProcess(CellProcess):
    """A walk on cells evenly spaced on a circle around the origin; a move by 1 is counterclockwise.

    The cell of a point is that of its angle. No cell is terminal.

    Args:
        num_states: Number N of cells, at least 3.
        jitter: Standard deviation of the observed point around its cell's centre, in units of the plane, positive and
            at most a fifth of the distance from a centre to the edge of its cell.
        slip: Probability that the move is random, in [0, 1].
        radius: Radius of the circle, positive.

    Raises:
        UserError: If a number is out of its range.
    """

    label: ClassVar[str] = "ring"

    radius: float = 1.0

    @property
    def half_width(self) -> float:
        """A little more than the radius."""
        return 1.25 * self.radius

    @property
    def cell_radius(self) -> float:
        """Distance from a centre to the ray between two cells."""
        return self.radius * math.sin(math.pi / self.num_states)

    def centres(self) -> Tensor:
        """Points of the circle, the first at angle 0, float64, shape (N, 2)."""
        angle = torch.arange(self.num_states, dtype=torch.float64) * (2.0 * math.pi / self.num_states)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=-1)

    def cell(self, state: Tensor) -> Tensor:
        """Cells by angle, int64, shape (*batch)."""
        angle = torch.atan2(state[..., 1], state[..., 0])
        return (angle * (self.num_states / (2.0 * math.pi))).round().long() % self.num_states

    def neighbour(self, cell: Tensor, move: Tensor) -> Tensor:
        """The next cell around the circle."""
        return (cell + move) % self.num_states

    def terminal_cells(self) -> Tensor:
        """None is, shape (N,)."""
        return torch.zeros(self.num_states, dtype=torch.bool)
