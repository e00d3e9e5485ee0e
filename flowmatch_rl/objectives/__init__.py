from flowmatch_rl.objectives.bellman import bellman_target, critic_loss
from flowmatch_rl.objectives.flow_matching import (
    ConditionalFlowMatching,
    FlowObjective,
    MeanFlow,
    flow_matching_loss,
    mean_flow_target,
)
from flowmatch_rl.objectives.reverse_flow import reverse_flow_target, velocity_regression_loss
from flowmatch_rl.objectives.weights import CappedSignalWeight, ErrorOf, PowerWeight, TimeWeight, UniformWeight

__all__ = [
    "CappedSignalWeight",
    "ConditionalFlowMatching",
    "ErrorOf",
    "FlowObjective",
    "MeanFlow",
    "PowerWeight",
    "TimeWeight",
    "UniformWeight",
    "bellman_target",
    "critic_loss",
    "flow_matching_loss",
    "mean_flow_target",
    "reverse_flow_target",
    "velocity_regression_loss",
]
