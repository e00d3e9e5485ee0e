from flowmatch_rl.estimators.control_variates import (
    ControlVariate,
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    NoControlVariate,
    RegressControlVariate,
)
from flowmatch_rl.estimators.posterior_mean import PosteriorMean, PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.estimators.proposals import LikelihoodProposal, ProductProposal, Proposal

__all__ = [
    "ControlVariate",
    "FisherControlVariate",
    "FixedControlVariate",
    "GradientControlVariate",
    "LikelihoodProposal",
    "NoControlVariate",
    "PosteriorMean",
    "PosteriorMeanEstimator",
    "ProductProposal",
    "Proposal",
    "RegressControlVariate",
    "boltzmann_density",
]
