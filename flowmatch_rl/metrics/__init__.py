from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.metrics.curves import MeanCurve, interpolate_curve, mean_curve
    from flowmatch_rl.metrics.dependence import correlation, variance_of_means
    from flowmatch_rl.metrics.distances import (
        energy_distance,
        energy_score,
        marginal_energy_distance,
        maximum_mean_discrepancy,
    )
    from flowmatch_rl.metrics.reliable import (
        interquartile_mean,
        percentile_interval,
        probability_of_improvement,
        resample_runs,
    )
    from flowmatch_rl.metrics.saturation import saturated_entries, saturated_fraction
    from flowmatch_rl.metrics.simplex import least_cost  # noqa: F401
    from flowmatch_rl.metrics.transport import (
        sliced_wasserstein_distance,
        squared_wasserstein_distance,
        wasserstein_distance,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "MeanCurve",
    "correlation",
    "energy_distance",
    "energy_score",
    "interpolate_curve",
    "interquartile_mean",
    "marginal_energy_distance",
    "maximum_mean_discrepancy",
    "mean_curve",
    "percentile_interval",
    "probability_of_improvement",
    "resample_runs",
    "saturated_entries",
    "saturated_fraction",
    "sliced_wasserstein_distance",
    "squared_wasserstein_distance",
    "variance_of_means",
    "wasserstein_distance",
]
