from flowmatch_rl.nets.architecture import Architecture, FlowNetwork, NamedArchitecture
from flowmatch_rl.nets.critic import CriticArchitecture, CriticEnsemble, without_autocast
from flowmatch_rl.nets.critic_layers import BatchNormLayers, CriticLayers, PostNormBlocks, PreNormBlocks
from flowmatch_rl.nets.dynamics import DynamicsArchitecture, DynamicsNetwork
from flowmatch_rl.nets.ema import EmaSettings, ema_copy, update_ema, warmed_up_decay
from flowmatch_rl.nets.embeddings import SinusoidalEmbedding
from flowmatch_rl.nets.film_unet import FilmUNet, FilmUNetArchitecture
from flowmatch_rl.nets.forward_backward import ForwardBackwardArchitecture, ForwardBackwardNetworks
from flowmatch_rl.nets.gaussian import GaussianArchitecture, GaussianNetwork
from flowmatch_rl.nets.observations import ObservationFeatures, share_units
from flowmatch_rl.nets.return_unit import ReturnUnit
from flowmatch_rl.nets.running_units import RunningUnits, moments_of
from flowmatch_rl.nets.termination import TerminationNetwork
from flowmatch_rl.nets.value_heads import CategoricalHead, FlowHead, QuantileHead, ScalarHead, ValueHead
from flowmatch_rl.nets.velocity import VelocityArchitecture, VelocityNetwork
from flowmatch_rl.objectives import ValueReduction

__all__ = [
    "Architecture",
    "BatchNormLayers",
    "CategoricalHead",
    "CriticArchitecture",
    "CriticEnsemble",
    "CriticLayers",
    "DynamicsArchitecture",
    "DynamicsNetwork",
    "EmaSettings",
    "FilmUNet",
    "FilmUNetArchitecture",
    "FlowHead",
    "FlowNetwork",
    "ForwardBackwardArchitecture",
    "ForwardBackwardNetworks",
    "GaussianArchitecture",
    "GaussianNetwork",
    "NamedArchitecture",
    "ObservationFeatures",
    "PostNormBlocks",
    "PreNormBlocks",
    "QuantileHead",
    "ReturnUnit",
    "RunningUnits",
    "ScalarHead",
    "SinusoidalEmbedding",
    "TerminationNetwork",
    "ValueHead",
    "ValueReduction",
    "VelocityArchitecture",
    "VelocityNetwork",
    "ema_copy",
    "moments_of",
    "share_units",
    "update_ema",
    "warmed_up_decay",
    "without_autocast",
]
