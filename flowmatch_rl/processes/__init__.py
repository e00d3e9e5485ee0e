from flowmatch_rl.processes.base import Process
from flowmatch_rl.processes.rewards import (
    BoxReward,
    CirculationReward,
    FunctionReward,
    GoalReward,
    LinearReward,
    QuadraticReward,
    SpeedReward,
    SumReward,
)

__all__ = [
    "BoxReward",
    "CirculationReward",
    "FunctionReward",
    "GoalReward",
    "LinearReward",
    "Process",
    "QuadraticReward",
    "SpeedReward",
    "SumReward",
]
