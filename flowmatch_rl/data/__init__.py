from flowmatch_rl.data.bandit import BanditData
from flowmatch_rl.data.collection import collect_transitions
from flowmatch_rl.data.datasets import Dataset, Density
from flowmatch_rl.data.densities import Checkerboard, EightGaussians, Rings, Spirals, TwoMoons
from flowmatch_rl.data.envs import DMControlEnvironment, Environment, GymnasiumEnvironment, Spaces, build_environment
from flowmatch_rl.data.layouts import (
    D4rlFile,
    ExorlEpisodes,
    Layout,
    LayoutInfo,
    MinariFolder,
    OgbenchFile,
    TransitionTable,
    convert_layout,
)
from flowmatch_rl.data.offline import OfflineData
from flowmatch_rl.data.online import OnlineData
from flowmatch_rl.data.process_env import ProcessEnv, ProcessEnvironment
from flowmatch_rl.data.rollouts import roll_out_episodes
from flowmatch_rl.data.samples import SampleData
from flowmatch_rl.data.store import StoreInfo, TransitionStore
from flowmatch_rl.data.tables import TableFile, read_table
from flowmatch_rl.data.writer import TransitionWriter

__all__ = [
    "BanditData",
    "Checkerboard",
    "D4rlFile",
    "DMControlEnvironment",
    "Dataset",
    "Density",
    "EightGaussians",
    "Environment",
    "ExorlEpisodes",
    "GymnasiumEnvironment",
    "Layout",
    "LayoutInfo",
    "MinariFolder",
    "OfflineData",
    "OgbenchFile",
    "OnlineData",
    "ProcessEnv",
    "ProcessEnvironment",
    "Rings",
    "SampleData",
    "Spaces",
    "Spirals",
    "StoreInfo",
    "TableFile",
    "TransitionStore",
    "TransitionTable",
    "TransitionWriter",
    "TwoMoons",
    "build_environment",
    "collect_transitions",
    "convert_layout",
    "read_table",
    "roll_out_episodes",
]
