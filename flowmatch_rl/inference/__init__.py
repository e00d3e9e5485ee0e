from flowmatch_rl.inference.checkpoint_policy import CheckpointPolicy
from flowmatch_rl.inference.flow import TrainedFlow, load_flow
from flowmatch_rl.inference.occupancy import TrainedOccupancy, load_occupancy
from flowmatch_rl.inference.policy import TrainedPolicy, load_policy
from flowmatch_rl.modules.safe_globals import allow_dataclasses

__all__ = [
    "CheckpointPolicy",
    "TrainedFlow",
    "TrainedOccupancy",
    "TrainedPolicy",
    "load_flow",
    "load_occupancy",
    "load_policy",
]

allow_dataclasses(CheckpointPolicy)
