from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.data.bandit import BanditData
    from flowmatch_rl.data.collection import collect_transitions
    from flowmatch_rl.data.datasets import Dataset, Density
    from flowmatch_rl.data.densities import Checkerboard, EightGaussians, Rings, Spirals, TwoMoons
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
    from flowmatch_rl.data.samples import SampleData
    from flowmatch_rl.data.store import StoreInfo, TransitionStore
    from flowmatch_rl.data.tables import TableFile, read_table
    from flowmatch_rl.data.writer import TransitionWriter
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BanditData",
    "Checkerboard",
    "D4rlFile",
    "Dataset",
    "Density",
    "EightGaussians",
    "ExorlEpisodes",
    "Layout",
    "LayoutInfo",
    "MinariFolder",
    "OfflineData",
    "OgbenchFile",
    "OnlineData",
    "Rings",
    "SampleData",
    "Spirals",
    "StoreInfo",
    "TableFile",
    "TransitionStore",
    "TransitionTable",
    "TransitionWriter",
    "TwoMoons",
    "collect_transitions",
    "convert_layout",
    "read_table",
]
