from flowmatch_rl.modules.reverse_flow_actor_critic import ReverseFlowActorCritic
from flowmatch_rl.modules.safe_globals import allow_dataclasses
from flowmatch_rl.modules.trained_policy import TrainedPolicy, load_policy

__all__ = ["ReverseFlowActorCritic", "TrainedPolicy", "load_policy"]

allow_dataclasses()
