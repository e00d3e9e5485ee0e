from flowmatch_rl.models.flow import Flow
from flowmatch_rl.models.gaussian_policy import GaussianArchitecture, GaussianPolicy
from flowmatch_rl.models.occupancy_flow import OccupancyFlow
from flowmatch_rl.models.occupancy_inputs import OccupancyInputs
from flowmatch_rl.models.policy import ActorModule, FlowPolicy, LatentPolicy, ParticleActor
from flowmatch_rl.models.policy_density import LogDensityEstimate
from flowmatch_rl.models.selection import FirstSelection, GreedySelection, Selection, SoftmaxSelection

__all__ = [
    "ActorModule",
    "FirstSelection",
    "Flow",
    "FlowPolicy",
    "GaussianArchitecture",
    "GaussianPolicy",
    "GreedySelection",
    "LatentPolicy",
    "LogDensityEstimate",
    "OccupancyFlow",
    "OccupancyInputs",
    "ParticleActor",
    "Selection",
    "SoftmaxSelection",
]
