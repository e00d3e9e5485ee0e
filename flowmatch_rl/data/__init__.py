from typing import TYPE_CHECKING

import flowmatch_rl.envs  # noqa: F401 (chooses an OpenGL backend before TorchRL imports MuJoCo)
from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.data.bandit import BanditData
    from flowmatch_rl.data.base import DataModule
    from flowmatch_rl.data.collector_processes import LocalProcesses
    from flowmatch_rl.data.demonstrations import collect_demonstrations
    from flowmatch_rl.data.layouts.base import Layout
    from flowmatch_rl.data.layouts.conversion import convert_layout
    from flowmatch_rl.data.layouts.d4rl import D4rlFile
    from flowmatch_rl.data.layouts.exorl import ExorlEpisodes
    from flowmatch_rl.data.layouts.log import EpisodeLog
    from flowmatch_rl.data.layouts.minari import MinariFolder
    from flowmatch_rl.data.layouts.ogbench import OgbenchFile
    from flowmatch_rl.data.layouts.replay import CheckpointReplay
    from flowmatch_rl.data.layouts.table import TransitionTable
    from flowmatch_rl.data.offline import OfflineData
    from flowmatch_rl.data.online import OnlineData
    from flowmatch_rl.data.online_phase import OnlinePhase
    from flowmatch_rl.data.policy import PolicyData
    from flowmatch_rl.data.ray_actors import RayActors
    from flowmatch_rl.data.replay_storage import DiskStorage, MemoryStorage
    from flowmatch_rl.data.requests import SampleRequests
    from flowmatch_rl.data.samples import SampleData
    from flowmatch_rl.data.tables.datasets import Dataset, DensityTable
    from flowmatch_rl.data.tables.reading import TableFile, read_table
    from flowmatch_rl.data.transitions.collection import collect_transitions
    from flowmatch_rl.data.transitions.goals import Goals
    from flowmatch_rl.data.transitions.store import StoreInfo, TransitionStore
    from flowmatch_rl.data.transitions.writer import TransitionWriter
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BanditData",
    "CheckpointReplay",
    "D4rlFile",
    "DataModule",
    "Dataset",
    "DensityTable",
    "DiskStorage",
    "EpisodeLog",
    "ExorlEpisodes",
    "Goals",
    "Layout",
    "LocalProcesses",
    "MemoryStorage",
    "MinariFolder",
    "OfflineData",
    "OgbenchFile",
    "OnlineData",
    "OnlinePhase",
    "PolicyData",
    "RayActors",
    "SampleData",
    "SampleRequests",
    "StoreInfo",
    "TableFile",
    "TransitionStore",
    "TransitionTable",
    "TransitionWriter",
    "collect_demonstrations",
    "collect_transitions",
    "convert_layout",
    "read_table",
]
