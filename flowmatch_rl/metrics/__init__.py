from flowmatch_rl.metrics.distances import energy_distance

__all__ = ["energy_distance"]
