from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports
from flowmatch_rl.modules.safe_globals import allow_dataclasses

if TYPE_CHECKING:
    from flowmatch_rl.modules.actor_critic import ActorCritic
    from flowmatch_rl.modules.bandit_flow import BanditFlow
    from flowmatch_rl.modules.behavior_cloning import BehaviorCloning
    from flowmatch_rl.modules.dynamics import DynamicsModule
    from flowmatch_rl.modules.expansion import Expansion
    from flowmatch_rl.modules.flow_matching import FlowMatchingModel
    from flowmatch_rl.modules.flow_q_learning import FlowQLearning
    from flowmatch_rl.modules.forward_backward import ForwardBackward
    from flowmatch_rl.modules.implicit_flow_q_learning import ImplicitFlowQLearning
    from flowmatch_rl.modules.occupancy import OccupancyModule
    from flowmatch_rl.modules.occupancy_actor_critic import OccupancyActorCritic
    from flowmatch_rl.modules.policy_module import PolicyModule
    from flowmatch_rl.modules.reflow import Reflow
    from flowmatch_rl.modules.reverse_flow_actor_critic import ReverseFlowActorCritic
    from flowmatch_rl.modules.segments import ObservedSteps, Segments
    from flowmatch_rl.modules.settings import (
        ActorCriticOptimizer,
        Critics,
        FlowOptimizer,
        Normalisation,
        TrainingPoints,
        WeightCritics,
    )
    from flowmatch_rl.modules.soft_actor_critic import SoftActorCritic
    from flowmatch_rl.modules.tilted_flow_actor_critic import TiltedFlowActorCritic
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ActorCritic",
    "ActorCriticOptimizer",
    "BanditFlow",
    "BehaviorCloning",
    "Critics",
    "DynamicsModule",
    "Expansion",
    "FlowMatchingModel",
    "FlowOptimizer",
    "FlowQLearning",
    "ForwardBackward",
    "ImplicitFlowQLearning",
    "Normalisation",
    "ObservedSteps",
    "OccupancyActorCritic",
    "OccupancyModule",
    "PolicyModule",
    "Reflow",
    "ReverseFlowActorCritic",
    "Segments",
    "SoftActorCritic",
    "TiltedFlowActorCritic",
    "TrainingPoints",
    "WeightCritics",
]

allow_dataclasses()
