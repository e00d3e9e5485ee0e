from flowmatch_rl.couplings.coupling import Coupling, IndependentCoupling
from flowmatch_rl.couplings.transport import ExactCoupling, SinkhornCoupling

__all__ = ["Coupling", "ExactCoupling", "IndependentCoupling", "SinkhornCoupling"]
