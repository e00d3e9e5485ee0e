from flowmatch_rl.models.actor import Acting, ActorModule, ParticleActor, no_values
from flowmatch_rl.models.dynamics import Dynamics, DynamicsSettings, Step
from flowmatch_rl.models.flow import Flow, Likelihood
from flowmatch_rl.models.flow_dynamics import FlowDynamics, StochasticDynamics
from flowmatch_rl.models.forward_backward import ForwardBackwardModel
from flowmatch_rl.models.gaussian_policy import GaussianPolicy, GaussianPolicyArchitecture
from flowmatch_rl.models.generative import GenerativeModel
from flowmatch_rl.models.goals import GoalTable
from flowmatch_rl.models.intentions import IntentionEncoder, Intentions
from flowmatch_rl.models.occupancy import Occupancy
from flowmatch_rl.models.occupancy_inputs import Horizon, OccupancyInputs
from flowmatch_rl.models.one_step_policy import OneStepPolicy, OneStepPolicyArchitecture
from flowmatch_rl.models.policy import FlowPolicy, FlowPolicyArchitecture, LatentPolicy
from flowmatch_rl.models.residual_dynamics import DeterministicDynamics, ResidualDynamics
from flowmatch_rl.models.selection import FirstSelection, GreedySelection, Selection, SoftmaxSelection

__all__ = [
    "Acting",
    "ActorModule",
    "DeterministicDynamics",
    "Dynamics",
    "DynamicsSettings",
    "FirstSelection",
    "Flow",
    "FlowDynamics",
    "FlowPolicy",
    "FlowPolicyArchitecture",
    "ForwardBackwardModel",
    "GaussianPolicy",
    "GaussianPolicyArchitecture",
    "GenerativeModel",
    "GoalTable",
    "GreedySelection",
    "Horizon",
    "IntentionEncoder",
    "Intentions",
    "LatentPolicy",
    "Likelihood",
    "Occupancy",
    "OccupancyInputs",
    "OneStepPolicy",
    "OneStepPolicyArchitecture",
    "ParticleActor",
    "ResidualDynamics",
    "Selection",
    "SoftmaxSelection",
    "Step",
    "StochasticDynamics",
    "no_values",
]
