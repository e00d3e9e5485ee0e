from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.data.transitions.collection import collect_transitions
    from flowmatch_rl.data.transitions.store import StoreInfo, TransitionStore
    from flowmatch_rl.data.transitions.writer import TransitionWriter
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["StoreInfo", "TransitionStore", "TransitionWriter", "collect_transitions"]
