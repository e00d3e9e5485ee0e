from flowmatch_rl.objectives.backups import FirstState, backup_weights, choose_state, horizon_weights
from flowmatch_rl.objectives.bellman import bellman_target, critic_loss
from flowmatch_rl.objectives.flow_matching import (
    ConditionalFlowMatching,
    FlowObjective,
    MeanFlow,
    flow_matching_loss,
    mean_flow_target,
)
from flowmatch_rl.objectives.occupancy import (
    TD2CFM,
    TD2DD,
    TDCFM,
    TDDD,
    Backup,
    BackupNoise,
    CoupledTDCFM,
    MonteCarloCFM,
    OccupancyObjective,
)
from flowmatch_rl.objectives.reverse_flow import prediction_loss, reverse_flow_target
from flowmatch_rl.objectives.weights import CappedSignalWeight, ErrorOf, PowerWeight, TimeWeight, UniformWeight

__all__ = [
    "TD2CFM",
    "TD2DD",
    "TDCFM",
    "TDDD",
    "Backup",
    "BackupNoise",
    "CappedSignalWeight",
    "ConditionalFlowMatching",
    "CoupledTDCFM",
    "ErrorOf",
    "FirstState",
    "FlowObjective",
    "MeanFlow",
    "MonteCarloCFM",
    "OccupancyObjective",
    "PowerWeight",
    "TimeWeight",
    "UniformWeight",
    "backup_weights",
    "bellman_target",
    "choose_state",
    "critic_loss",
    "flow_matching_loss",
    "horizon_weights",
    "mean_flow_target",
    "prediction_loss",
    "reverse_flow_target",
]
