from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.evaluation.estimators import (
        EstimatorErrors,
        check_estimator,
        estimator_errors,
        exact_posterior_mean,
    )
    from flowmatch_rl.evaluation.occupancy import FutureTests, real_futures
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "EstimatorErrors",
    "FutureTests",
    "check_estimator",
    "estimator_errors",
    "exact_posterior_mean",
    "real_futures",
]
