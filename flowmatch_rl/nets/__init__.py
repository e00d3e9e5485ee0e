from flowmatch_rl.nets.architecture import Architecture, FlowNetwork, NamedArchitecture
from flowmatch_rl.nets.critic import CriticArchitecture, CriticEnsemble
from flowmatch_rl.nets.embeddings import SinusoidalEmbedding
from flowmatch_rl.nets.film_unet import FilmUNet, FilmUNetArchitecture
from flowmatch_rl.nets.gaussian_policy import GaussianArchitecture, GaussianPolicy
from flowmatch_rl.nets.lagging import lagging_copy, update_lagging_copy
from flowmatch_rl.nets.policy import ActorModule, FlowPolicy, LatentPolicy, ParticleActor
from flowmatch_rl.nets.policy_density import LogDensityEstimate
from flowmatch_rl.nets.selection import FirstSelection, GreedySelection, Selection, SoftmaxSelection
from flowmatch_rl.nets.value_heads import CategoricalHead, QuantileHead, ScalarHead, ValueHead
from flowmatch_rl.nets.velocity import VelocityArchitecture, VelocityNetwork
from flowmatch_rl.objectives import ValueReduction

__all__ = [
    "ActorModule",
    "Architecture",
    "CategoricalHead",
    "CriticArchitecture",
    "CriticEnsemble",
    "FilmUNet",
    "FilmUNetArchitecture",
    "FirstSelection",
    "FlowNetwork",
    "FlowPolicy",
    "GaussianArchitecture",
    "GaussianPolicy",
    "GreedySelection",
    "LatentPolicy",
    "LogDensityEstimate",
    "NamedArchitecture",
    "ParticleActor",
    "QuantileHead",
    "ScalarHead",
    "Selection",
    "SinusoidalEmbedding",
    "SoftmaxSelection",
    "ValueHead",
    "ValueReduction",
    "VelocityArchitecture",
    "VelocityNetwork",
    "lagging_copy",
    "update_lagging_copy",
]
