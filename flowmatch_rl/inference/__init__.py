from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports
from flowmatch_rl.inference.checkpoint_policy import CheckpointPolicy
from flowmatch_rl.modules.safe_globals import allow_dataclasses

if TYPE_CHECKING:
    from flowmatch_rl.inference.dynamics import TrainedDynamics, load_dynamics
    from flowmatch_rl.inference.export import Exported, export_checkpoint
    from flowmatch_rl.inference.flow import TrainedFlow, load_flow
    from flowmatch_rl.inference.forward_backward import EmbeddedPolicy, TrainedForwardBackward, load_forward_backward
    from flowmatch_rl.inference.occupancy import TrainedOccupancy, load_occupancy
    from flowmatch_rl.inference.policy import TrainedPolicy, load_policy
    from flowmatch_rl.inference.slimming import slim_checkpoint
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CheckpointPolicy",
    "EmbeddedPolicy",
    "Exported",
    "TrainedDynamics",
    "TrainedFlow",
    "TrainedForwardBackward",
    "TrainedOccupancy",
    "TrainedPolicy",
    "export_checkpoint",
    "load_dynamics",
    "load_flow",
    "load_forward_backward",
    "load_occupancy",
    "load_policy",
    "slim_checkpoint",
]

allow_dataclasses(CheckpointPolicy)
