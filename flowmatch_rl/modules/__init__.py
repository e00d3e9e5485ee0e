from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.bandit_flow import BanditFlow
from flowmatch_rl.modules.checkpoint_policy import CheckpointPolicy
from flowmatch_rl.modules.flow_matching import FlowMatchingModel
from flowmatch_rl.modules.generation import Flow
from flowmatch_rl.modules.occupancy import OccupancyModule
from flowmatch_rl.modules.occupancy_flow import OccupancyFlow
from flowmatch_rl.modules.occupancy_tests import FutureTests
from flowmatch_rl.modules.reflow import Reflow
from flowmatch_rl.modules.reverse_flow_actor_critic import ReverseFlowActorCritic
from flowmatch_rl.modules.safe_globals import allow_dataclasses
from flowmatch_rl.modules.soft_actor_critic import SoftActorCritic
from flowmatch_rl.modules.trained_flow import TrainedFlow, load_flow
from flowmatch_rl.modules.trained_occupancy import TrainedOccupancy, load_occupancy
from flowmatch_rl.modules.trained_policy import TrainedPolicy, load_policy

__all__ = [
    "ActorCritic",
    "BanditFlow",
    "CheckpointPolicy",
    "Flow",
    "FlowMatchingModel",
    "FutureTests",
    "OccupancyFlow",
    "OccupancyModule",
    "Reflow",
    "ReverseFlowActorCritic",
    "SoftActorCritic",
    "TrainedFlow",
    "TrainedOccupancy",
    "TrainedPolicy",
    "load_flow",
    "load_occupancy",
    "load_policy",
]

allow_dataclasses(CheckpointPolicy, FutureTests, Reflow)
