"""The last lines a run prints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger

from flowmatch_rl.callbacks.database import database_file, is_server, local_address, run_page, without_password


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
        if isinstance(logger, MLFlowLogger):
            address = str(logger.experiment.tracking_uri)
            page = run_page(address, str(logger.experiment_id), logger.run_id)
            file = database_file(address)
            if is_server(address):
                lines.append(f"tracking     {page}")
            elif file is None:
                lines.append(f"tracking     MLflow run {logger.run_id} at {without_password(address)}")
            else:
                option = "" if address == local_address() else f" --tracking_uri {address}"
                lines += [f"tracking     {page}", f"open it      flowmatch-rl ui{option}"]
    return lines


def shown(path: Path) -> str:
    """A path relative to the working folder where that is shorter.

    Args:
        path: The path.
    """
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
