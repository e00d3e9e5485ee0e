from flowmatch_rl.estimators.base import EndPointEstimator, PathPoints, PosteriorMean
from flowmatch_rl.estimators.control_variates import (
    ControlVariate,
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    NoControlVariate,
    RegressControlVariate,
)
from flowmatch_rl.estimators.density import boltzmann_density
from flowmatch_rl.estimators.point_score import PointScoreEstimator
from flowmatch_rl.estimators.posterior_mean import PosteriorMeanEstimator
from flowmatch_rl.estimators.proposals import (
    LikelihoodProposal,
    MixtureProposal,
    ProductProposal,
    Proposal,
    TruncatedProposal,
)
from flowmatch_rl.estimators.reweighted import ReweightedEndPoints
from flowmatch_rl.estimators.time_bins import time_bin_sums

__all__ = [
    "ControlVariate",
    "EndPointEstimator",
    "FisherControlVariate",
    "FixedControlVariate",
    "GradientControlVariate",
    "LikelihoodProposal",
    "MixtureProposal",
    "NoControlVariate",
    "PathPoints",
    "PointScoreEstimator",
    "PosteriorMean",
    "PosteriorMeanEstimator",
    "ProductProposal",
    "Proposal",
    "RegressControlVariate",
    "ReweightedEndPoints",
    "TruncatedProposal",
    "boltzmann_density",
    "time_bin_sums",
]
