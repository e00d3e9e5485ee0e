from flowmatch_rl.models.actor import Acting, ActorModule, ParticleActor
from flowmatch_rl.models.dynamics import Dynamics, Step
from flowmatch_rl.models.flow import Flow, Likelihood
from flowmatch_rl.models.gaussian_policy import GaussianPolicy, GaussianPolicyArchitecture
from flowmatch_rl.models.generative import GenerativeModel
from flowmatch_rl.models.occupancy import Occupancy
from flowmatch_rl.models.occupancy_inputs import Horizon, OccupancyInputs
from flowmatch_rl.models.policy import FlowPolicy, FlowPolicyArchitecture, LatentPolicy
from flowmatch_rl.models.selection import FirstSelection, GreedySelection, Selection, SoftmaxSelection

__all__ = [
    "Acting",
    "ActorModule",
    "Dynamics",
    "FirstSelection",
    "Flow",
    "FlowPolicy",
    "FlowPolicyArchitecture",
    "GaussianPolicy",
    "GaussianPolicyArchitecture",
    "GenerativeModel",
    "GreedySelection",
    "Horizon",
    "LatentPolicy",
    "Likelihood",
    "Occupancy",
    "OccupancyInputs",
    "ParticleActor",
    "Selection",
    "SoftmaxSelection",
    "Step",
]
