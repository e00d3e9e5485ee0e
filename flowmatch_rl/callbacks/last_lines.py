"""The last lines a run prints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger

from flowmatch_rl.callbacks.addresses import run_lines, run_page
from flowmatch_rl.callbacks.run_logger import RunLogger
from flowmatch_rl.files import shown


def summary(trainer: Trainer) -> str:
    """What the final evaluation measured, by the module's ``result_lines``, and where the files of the run are.

    Args:
        trainer: A Trainer that has just tested.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    root = Path(trainer.default_root_dir)
    module: Any = trainer.lightning_module
    lines = getattr(module, "result_lines", lambda _: [])(metrics)  # which a user's own module may not have
    for label, pattern in (("checkpoint", "checkpoints/*.ckpt"), ("figure", "figures/*.png"), ("video", "videos/*")):
        lines += [f"{label:<12} {shown(path)}" for path in sorted(root.glob(pattern))]
    return "\n".join(lines + tracking_lines(trainer))


def tracking_lines(trainer: Trainer) -> list[str]:
    """Where what a run tracks is to be seen.

    Args:
        trainer: Its Trainer.
    """
    lines = []
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            lines += logger.lines()
        elif isinstance(logger, MLFlowLogger):
            address = str(logger.experiment.tracking_uri)
            lines += run_lines(address, run_page(address, str(logger.experiment_id), logger.run_id), logger.run_id)
    return lines
