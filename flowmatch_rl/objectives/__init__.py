from flowmatch_rl.objectives.bellman import bellman_target, critic_loss
from flowmatch_rl.objectives.reverse_flow import (
    CappedSignalWeight,
    PowerWeight,
    TimeWeight,
    UniformWeight,
    reverse_flow_target,
    velocity_regression_loss,
)

__all__ = [
    "CappedSignalWeight",
    "PowerWeight",
    "TimeWeight",
    "UniformWeight",
    "bellman_target",
    "critic_loss",
    "reverse_flow_target",
    "velocity_regression_loss",
]
