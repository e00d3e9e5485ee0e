from flowmatch_rl.evaluation.estimators import EstimatorErrors, check_estimator, estimator_errors, exact_posterior_mean
from flowmatch_rl.evaluation.occupancy import FutureTests, real_futures

__all__ = [
    "EstimatorErrors",
    "FutureTests",
    "check_estimator",
    "estimator_errors",
    "exact_posterior_mean",
    "real_futures",
]
