from flowmatch_rl.nets.architecture import Architecture, FlowNetwork, NamedArchitecture
from flowmatch_rl.nets.critic import CriticArchitecture, CriticEnsemble, ValueReduction
from flowmatch_rl.nets.embeddings import SinusoidalEmbedding
from flowmatch_rl.nets.film_unet import FilmUNet, FilmUNetArchitecture
from flowmatch_rl.nets.lagging import lagging_copy, update_lagging_copy
from flowmatch_rl.nets.policy import ActorModule, FlowPolicy, ParticleActor
from flowmatch_rl.nets.selection import FirstSelection, GreedySelection, Selection, SoftmaxSelection
from flowmatch_rl.nets.velocity import VelocityArchitecture, VelocityNetwork

__all__ = [
    "ActorModule",
    "Architecture",
    "CriticArchitecture",
    "CriticEnsemble",
    "FilmUNet",
    "FilmUNetArchitecture",
    "FirstSelection",
    "FlowNetwork",
    "FlowPolicy",
    "GreedySelection",
    "NamedArchitecture",
    "ParticleActor",
    "Selection",
    "SinusoidalEmbedding",
    "SoftmaxSelection",
    "ValueReduction",
    "VelocityArchitecture",
    "VelocityNetwork",
    "lagging_copy",
    "update_lagging_copy",
]
