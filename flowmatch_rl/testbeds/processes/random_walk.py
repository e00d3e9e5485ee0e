"""A walk along a line."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.testbeds.processes.cells import CellProcess


@dataclass(frozen=True)
class RandomWalkProcess(CellProcess):
    """A walk on cells evenly spaced from x = -1 to x = 1 on the line y = 0; a move by 1 goes to the right.

    Args:
        num_states: Number N of cells, at least 3.
        jitter: Standard deviation of the observed point around its cell's centre, in units of the plane, positive and
            at most a fifth of the distance from a centre to the edge of its cell.
        slip: Probability that the move is random, in [0, 1].
        absorbing: Whether the first and the last cell are terminal; else a move beyond them stays.

    Raises:
        UserError: If a number is out of its range.
    """

    label: ClassVar[str] = "random-walk"

    num_states: int = 7
    jitter: float = 0.03
    absorbing: bool = True

    @property
    def half_width(self) -> float:
        """A little more than 1."""
        return 1.25

    @property
    def cell_radius(self) -> float:
        """Half the spacing of the centres."""
        return 1.0 / (self.num_states - 1)

    def centres(self) -> Tensor:
        """Points of the line, float64, shape (N, 2)."""
        x = torch.linspace(-1.0, 1.0, self.num_states, dtype=torch.float64)
        return torch.stack([x, torch.zeros_like(x)], dim=-1)

    def cell(self, state: Tensor) -> Tensor:
        """Cells by x, int64, shape (*batch)."""
        return ((state[..., 0] + 1.0) / (2.0 * self.cell_radius)).round().long().clamp(0, self.num_states - 1)

    def neighbour(self, cell: Tensor, move: Tensor) -> Tensor:
        """The next cell along the line."""
        return (cell + move).clamp(0, self.num_states - 1)

    def terminal_cells(self) -> Tensor:
        """The two ends if they absorb, shape (N,)."""
        cells = torch.arange(self.num_states)
        return ((cells == 0) | (cells == self.num_states - 1)) & self.absorbing
