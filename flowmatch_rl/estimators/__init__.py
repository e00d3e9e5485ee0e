from flowmatch_rl.estimators.base import EndpointEstimate, EndpointEstimator, Prior
from flowmatch_rl.estimators.block_mean import BlockMeanEstimator
from flowmatch_rl.estimators.chain_mean import ChainMeanEstimator
from flowmatch_rl.estimators.control_variates import (
    ControlVariate,
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    NoControlVariate,
    RegressControlVariate,
)
from flowmatch_rl.estimators.density import boltzmann_density
from flowmatch_rl.estimators.local_mean import LocalMeanEstimator
from flowmatch_rl.estimators.point_score import PointScoreEstimator
from flowmatch_rl.estimators.posterior_mean import PosteriorMeanEstimator
from flowmatch_rl.estimators.prior import MarginalProposal, PosteriorProposal, PriorMeanEstimator, PriorProposal
from flowmatch_rl.estimators.proposals import (
    LikelihoodProposal,
    MixtureProposal,
    ProductProposal,
    Proposal,
    TruncatedProposal,
)
from flowmatch_rl.estimators.reweighted import ReweightedEndpoints
from flowmatch_rl.estimators.time_bins import time_bin_sums

__all__ = [
    "BlockMeanEstimator",
    "ChainMeanEstimator",
    "ControlVariate",
    "EndpointEstimate",
    "EndpointEstimator",
    "FisherControlVariate",
    "FixedControlVariate",
    "GradientControlVariate",
    "LikelihoodProposal",
    "LocalMeanEstimator",
    "MarginalProposal",
    "MixtureProposal",
    "NoControlVariate",
    "PointScoreEstimator",
    "PosteriorMeanEstimator",
    "PosteriorProposal",
    "Prior",
    "PriorMeanEstimator",
    "PriorProposal",
    "ProductProposal",
    "Proposal",
    "RegressControlVariate",
    "ReweightedEndpoints",
    "TruncatedProposal",
    "boltzmann_density",
    "time_bin_sums",
]
