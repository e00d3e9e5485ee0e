from flowmatch_rl.testbeds.bandits.base import Bandit, PlanarBandit, ProductBandit
from flowmatch_rl.testbeds.bandits.dependent import CorrelatedGaussians
from flowmatch_rl.testbeds.bandits.planar import FourModes, TwoMoonsEnergy
from flowmatch_rl.testbeds.bandits.products import Bimodal, Flat, Quadratic
from flowmatch_rl.testbeds.densities import Checkerboard, EightGaussians, PlanarDensity, Rings, Spirals, TwoMoons
from flowmatch_rl.testbeds.labelled import LabelledReward
from flowmatch_rl.testbeds.policies.maze import MazeGoalPolicy, MazeLoopPolicy, MazeReachPolicy, Room
from flowmatch_rl.testbeds.policies.mixture import PolicyMixture
from flowmatch_rl.testbeds.policies.simple import ConstantPolicy, LinearPolicy, PointGoalPolicy, RandomPolicy
from flowmatch_rl.testbeds.processes.arm import ReachingArm
from flowmatch_rl.testbeds.processes.base import Process
from flowmatch_rl.testbeds.processes.cells import CellProcess, discounted_occupancy
from flowmatch_rl.testbeds.processes.full_mixture import FullGaussianMixture
from flowmatch_rl.testbeds.processes.horizons import geometric_steps
from flowmatch_rl.testbeds.processes.linear_gaussian import LinearGaussianProcess
from flowmatch_rl.testbeds.processes.maze import PointMassMaze, free_positions
from flowmatch_rl.testbeds.processes.planar import PlanarProcess
from flowmatch_rl.testbeds.processes.point_mass import PointMassRoom
from flowmatch_rl.testbeds.processes.random_walk import RandomWalkProcess
from flowmatch_rl.testbeds.processes.ring import RingProcess
from flowmatch_rl.testbeds.rewards import (
    BoxReward,
    CirculationReward,
    FunctionReward,
    GoalReward,
    LinearReward,
    QuadraticReward,
    SpeedReward,
    SumReward,
)
from flowmatch_rl.testbeds.tabular import (
    CombinationLock,
    TabularBackup,
    accumulated_bias,
    accumulated_strays,
    counted_kernel,
)
from flowmatch_rl.testbeds.tilted import TiltedMixture

__all__ = [
    "Bandit",
    "Bimodal",
    "BoxReward",
    "CellProcess",
    "Checkerboard",
    "CirculationReward",
    "CombinationLock",
    "ConstantPolicy",
    "CorrelatedGaussians",
    "EightGaussians",
    "Flat",
    "FourModes",
    "FullGaussianMixture",
    "FunctionReward",
    "GoalReward",
    "LabelledReward",
    "LinearGaussianProcess",
    "LinearPolicy",
    "LinearReward",
    "MazeGoalPolicy",
    "MazeLoopPolicy",
    "MazeReachPolicy",
    "PlanarBandit",
    "PlanarDensity",
    "PlanarProcess",
    "PointGoalPolicy",
    "PointMassMaze",
    "PointMassRoom",
    "PolicyMixture",
    "Process",
    "ProductBandit",
    "Quadratic",
    "QuadraticReward",
    "RandomPolicy",
    "RandomWalkProcess",
    "ReachingArm",
    "RingProcess",
    "Rings",
    "Room",
    "SpeedReward",
    "Spirals",
    "SumReward",
    "TabularBackup",
    "TiltedMixture",
    "TwoMoons",
    "TwoMoonsEnergy",
    "accumulated_bias",
    "accumulated_strays",
    "counted_kernel",
    "discounted_occupancy",
    "free_positions",
    "geometric_steps",
]
