from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.couplings.coupling import Coupling, IndependentCoupling
    from flowmatch_rl.couplings.sinkhorn import sinkhorn_plan  # noqa: F401
    from flowmatch_rl.couplings.transport import ExactCoupling, SinkhornCoupling
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["Coupling", "ExactCoupling", "IndependentCoupling", "SinkhornCoupling"]
