from flowmatch_rl.bandits.base import Bandit, PlanarBandit, ProductBandit
from flowmatch_rl.bandits.planar import FourModes, TwoMoonsEnergy
from flowmatch_rl.bandits.products import Bimodal, Flat, Quadratic
from flowmatch_rl.bandits.study import EstimatorErrors, estimator_errors, exact_posterior_mean

__all__ = [
    "Bandit",
    "Bimodal",
    "EstimatorErrors",
    "Flat",
    "FourModes",
    "PlanarBandit",
    "ProductBandit",
    "Quadratic",
    "TwoMoonsEnergy",
    "estimator_errors",
    "exact_posterior_mean",
]
