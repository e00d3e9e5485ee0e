from flowmatch_rl.processes.base import Process
from flowmatch_rl.processes.cells import CellProcess, discounted_occupancy
from flowmatch_rl.processes.full_mixture import FullGaussianMixture
from flowmatch_rl.processes.horizons import geometric_steps
from flowmatch_rl.processes.linear_gaussian import LinearGaussianProcess
from flowmatch_rl.processes.maze import PointMassMaze, free_positions
from flowmatch_rl.processes.maze_policies import MazeGoalPolicy, MazeLoopPolicy, MazeReachPolicy, Room
from flowmatch_rl.processes.planar import PlanarProcess
from flowmatch_rl.processes.policies import ConstantPolicy, LinearPolicy, RandomPolicy
from flowmatch_rl.processes.random_walk import RandomWalkProcess
from flowmatch_rl.processes.rewards import (
    BoxReward,
    CirculationReward,
    FunctionReward,
    GoalReward,
    LinearReward,
    QuadraticReward,
    SpeedReward,
    SumReward,
)
from flowmatch_rl.processes.ring import RingProcess

__all__ = [
    "BoxReward",
    "CellProcess",
    "CirculationReward",
    "ConstantPolicy",
    "FullGaussianMixture",
    "FunctionReward",
    "GoalReward",
    "LinearGaussianProcess",
    "LinearPolicy",
    "LinearReward",
    "MazeGoalPolicy",
    "MazeLoopPolicy",
    "MazeReachPolicy",
    "PlanarProcess",
    "PointMassMaze",
    "Process",
    "QuadraticReward",
    "RandomPolicy",
    "RandomWalkProcess",
    "RingProcess",
    "Room",
    "SpeedReward",
    "SumReward",
    "discounted_occupancy",
    "free_positions",
    "geometric_steps",
]
