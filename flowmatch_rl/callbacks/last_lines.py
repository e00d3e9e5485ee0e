"""The last lines a run prints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger

from flowmatch_rl.callbacks.addresses import (
    database_file,
    is_server,
    local_address,
    place_of,
    run_page,
    without_password,
)
from flowmatch_rl.callbacks.tracking import Tracker
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
    """Where the MLflow runs of a run are to be seen.

    Args:
        trainer: Its Trainer.
    """
    lines = []
    for logger in trainer.loggers:
        if isinstance(logger, Tracker):
            logger.open()
            lines += _lines(logger.address, logger.page, logger.run_id)
        elif isinstance(logger, MLFlowLogger):
            address = str(logger.experiment.tracking_uri)
            lines += _lines(address, run_page(address, str(logger.experiment_id), logger.run_id), logger.run_id)
    return lines


def _lines(address: str, page: str | None, run_id: str | None) -> list[str]:
    """Where an MLflow run is to be seen; its page is None where MLflow has not been reached."""
    if page is None:
        return [f"tracking     {place_of(address)}, not reached yet"]
    if is_server(address):
        return [f"tracking     {page}"]
    if database_file(address) is None:
        return [f"tracking     MLflow run {run_id} at {without_password(address)}"]
    option = "" if address == local_address() else f" --tracking_uri {address}"
    return [f"tracking     {page}", f"open it      flowmatch-rl ui{option}"]
