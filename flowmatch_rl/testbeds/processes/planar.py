"""Processes that happen in the plane and can be drawn."""

import abc
from dataclasses import dataclass

from torch import Tensor

from flowmatch_rl.testbeds.processes.base import Process


@dataclass(frozen=True)
class PlanarProcess(Process):
    """A process whose state begins with a position (x, y)."""

    @property
    @abc.abstractmethod
    def half_width(self) -> float:
        """Half the side of the square around the origin that holds all positions, or nearly all, in units of x."""

    @abc.abstractmethod
    def walls(self) -> Tensor:
        """Walls as boxes (x_low, y_low, x_high, y_high), float64, shape (W, 4)."""
