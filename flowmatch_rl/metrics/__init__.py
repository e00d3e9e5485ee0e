from flowmatch_rl.metrics.distances import energy_distance
from flowmatch_rl.metrics.episodes import episode_returns

__all__ = ["energy_distance", "episode_returns"]
