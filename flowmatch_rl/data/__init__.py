from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.data.bandit import BanditData
    from flowmatch_rl.data.base import DataModule
    from flowmatch_rl.data.layouts import (
        D4rlFile,
        ExorlEpisodes,
        Layout,
        MinariFolder,
        OgbenchFile,
        TransitionTable,
        convert_layout,
    )
    from flowmatch_rl.data.offline import OfflineData
    from flowmatch_rl.data.online import OnlineData
    from flowmatch_rl.data.samples import SampleData
    from flowmatch_rl.data.tables import Dataset, DensityTable, TableFile, read_table
    from flowmatch_rl.data.transitions import StoreInfo, TransitionStore, TransitionWriter, collect_transitions
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BanditData",
    "D4rlFile",
    "DataModule",
    "Dataset",
    "DensityTable",
    "ExorlEpisodes",
    "Layout",
    "MinariFolder",
    "OfflineData",
    "OgbenchFile",
    "OnlineData",
    "SampleData",
    "StoreInfo",
    "TableFile",
    "TransitionStore",
    "TransitionTable",
    "TransitionWriter",
    "collect_transitions",
    "convert_layout",
    "read_table",
]
