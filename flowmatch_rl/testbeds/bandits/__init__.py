from flowmatch_rl.testbeds.bandits.base import Bandit, PlanarBandit, ProductBandit
from flowmatch_rl.testbeds.bandits.planar import FourModes, TwoMoonsEnergy
from flowmatch_rl.testbeds.bandits.products import Bimodal, Flat, Quadratic

__all__ = [
    "Bandit",
    "Bimodal",
    "Flat",
    "FourModes",
    "PlanarBandit",
    "ProductBandit",
    "Quadratic",
    "TwoMoonsEnergy",
]
