from flowmatch_rl.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from flowmatch_rl.callbacks.episodes import EpisodeWriter
from flowmatch_rl.callbacks.progress import EnvStepProgress, Throughput
from flowmatch_rl.callbacks.summary import Summary
from flowmatch_rl.callbacks.tracking import RunRecord, Tracker

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "EnvStepProgress",
    "EpisodeWriter",
    "RunRecord",
    "Summary",
    "Throughput",
    "Tracker",
]
