from flowmatch_rl.testbeds.processes.base import Process
from flowmatch_rl.testbeds.processes.cells import CellProcess, discounted_occupancy
from flowmatch_rl.testbeds.processes.full_mixture import FullGaussianMixture
from flowmatch_rl.testbeds.processes.horizons import geometric_steps
from flowmatch_rl.testbeds.processes.linear_gaussian import LinearGaussianProcess
from flowmatch_rl.testbeds.processes.maze import PointMassMaze, free_positions
from flowmatch_rl.testbeds.processes.planar import PlanarProcess
from flowmatch_rl.testbeds.processes.random_walk import RandomWalkProcess
from flowmatch_rl.testbeds.processes.ring import RingProcess

__all__ = [
    "CellProcess",
    "FullGaussianMixture",
    "LinearGaussianProcess",
    "PlanarProcess",
    "PointMassMaze",
    "Process",
    "RandomWalkProcess",
    "RingProcess",
    "discounted_occupancy",
    "free_positions",
    "geometric_steps",
]
