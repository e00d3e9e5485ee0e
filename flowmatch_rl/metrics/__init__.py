from flowmatch_rl.metrics.distances import energy_distance, maximum_mean_discrepancy
from flowmatch_rl.metrics.episodes import episode_returns
from flowmatch_rl.metrics.transport import (
    sliced_wasserstein_distance,
    squared_wasserstein_distance,
    wasserstein_distance,
)

__all__ = [
    "energy_distance",
    "episode_returns",
    "maximum_mean_discrepancy",
    "sliced_wasserstein_distance",
    "squared_wasserstein_distance",
    "wasserstein_distance",
]
