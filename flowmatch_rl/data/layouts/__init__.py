from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.data.layouts.base import Layout, Rows
    from flowmatch_rl.data.layouts.conversion import convert_layout
    from flowmatch_rl.data.layouts.d4rl import D4rlFile
    from flowmatch_rl.data.layouts.exorl import ExorlEpisodes
    from flowmatch_rl.data.layouts.minari import MinariFolder
    from flowmatch_rl.data.layouts.ogbench import OgbenchFile
    from flowmatch_rl.data.layouts.table import TransitionTable
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "D4rlFile",
    "ExorlEpisodes",
    "Layout",
    "MinariFolder",
    "OgbenchFile",
    "Rows",
    "TransitionTable",
    "convert_layout",
]
