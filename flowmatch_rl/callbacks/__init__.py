from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.callbacks.actions import ActionWriter
    from flowmatch_rl.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
    from flowmatch_rl.callbacks.csv_tracking import CsvTracker
    from flowmatch_rl.callbacks.curves import LossCurve
    from flowmatch_rl.callbacks.dynamics_figures import DynamicsFigures
    from flowmatch_rl.callbacks.episodes import EpisodeWriter
    from flowmatch_rl.callbacks.expansion_curve import ExpansionCurve
    from flowmatch_rl.callbacks.figures import (
        CalibrationFigure,
        EpisodeFigure,
        LearningCurve,
        PolicyCurve,
        PolicyFigures,
        ValueMapFigure,
    )
    from flowmatch_rl.callbacks.first_lines import header
    from flowmatch_rl.callbacks.flow_figures import FlowFigures
    from flowmatch_rl.callbacks.last_lines import summary
    from flowmatch_rl.callbacks.model_log import ModelLog
    from flowmatch_rl.callbacks.occupancy_figures import OccupancyFigures
    from flowmatch_rl.callbacks.posterior_figures import PosteriorFigures
    from flowmatch_rl.callbacks.progress import Progress, Throughput
    from flowmatch_rl.callbacks.quiet_profiler import QuietProfiler
    from flowmatch_rl.callbacks.rank_watch import RankWatch
    from flowmatch_rl.callbacks.results import RunResult
    from flowmatch_rl.callbacks.run_logger import RunLogger
    from flowmatch_rl.callbacks.run_record import RunRecord
    from flowmatch_rl.callbacks.samples import SampleWriter
    from flowmatch_rl.callbacks.tensorboard_tracking import TensorBoardTracker
    from flowmatch_rl.callbacks.tracking import Tracker
    from flowmatch_rl.callbacks.video import Video
    from flowmatch_rl.callbacks.wandb_tracking import WandbTracker
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ActionWriter",
    "AtomicCheckpointIO",
    "CalibrationFigure",
    "Checkpoints",
    "CsvTracker",
    "DynamicsFigures",
    "EpisodeFigure",
    "EpisodeWriter",
    "ExpansionCurve",
    "FlowFigures",
    "LearningCurve",
    "LossCurve",
    "ModelLog",
    "OccupancyFigures",
    "PolicyCurve",
    "PolicyFigures",
    "PosteriorFigures",
    "Progress",
    "QuietProfiler",
    "RankWatch",
    "RunLogger",
    "RunRecord",
    "RunResult",
    "SampleWriter",
    "TensorBoardTracker",
    "Throughput",
    "Tracker",
    "ValueMapFigure",
    "Video",
    "WandbTracker",
    "header",
    "summary",
]
