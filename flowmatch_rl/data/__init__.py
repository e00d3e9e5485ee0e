from flowmatch_rl.data.datasets import Dataset, Density
from flowmatch_rl.data.densities import Checkerboard, EightGaussians, Rings, Spirals, TwoMoons
from flowmatch_rl.data.envs import DMControlEnvironment, Environment, GymnasiumEnvironment, Spaces, build_environment
from flowmatch_rl.data.online import OnlineData
from flowmatch_rl.data.rollouts import roll_out_episodes
from flowmatch_rl.data.samples import SampleData
from flowmatch_rl.data.tables import TableFile, read_table

__all__ = [
    "Checkerboard",
    "DMControlEnvironment",
    "Dataset",
    "Density",
    "EightGaussians",
    "Environment",
    "GymnasiumEnvironment",
    "OnlineData",
    "Rings",
    "SampleData",
    "Spaces",
    "Spirals",
    "TableFile",
    "TwoMoons",
    "build_environment",
    "read_table",
    "roll_out_episodes",
]
