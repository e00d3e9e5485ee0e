"""Files that callbacks write: where they go, who writes them, and their copies where the run is tracked."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger

from flowmatch_rl.callbacks.run_logger import RunLogger
from flowmatch_rl.figures import Figure, save_figure
from flowmatch_rl.files import FIGURES


def writes_files(trainer: Trainer) -> bool:
    """Whether this process writes files: the first one, in a real run."""
    trial: bool | int = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]
    return trainer.is_global_zero and not trainer.sanity_checking and not trial


def file_path(trainer: Trainer, folder: str, name: str) -> Path:
    """Path of a file in a folder of the run; the folder is made.

    Args:
        trainer: The run's trainer.
        folder: Folder under the run's.
        name: Name of the file.
    """
    path = Path(trainer.default_root_dir) / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def publish(trainer: Trainer, path: Path, folder: str) -> None:
    """Copy a file to wherever the trainer tracks the run; to MLflow a ``Tracker`` does so later, without waiting.

    Args:
        trainer: The run's trainer.
        path: The file.
        folder: Folder among the run's artifacts.
    """
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.log_file(path, folder)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path), folder)


def write_figure(trainer: Trainer, figure: Figure, name: str) -> None:
    """Write a figure into the folder of figures, and to wherever the run is tracked.

    Args:
        trainer: The run's trainer.
        figure: The figure.
        name: Name of the file.
    """
    path = file_path(trainer, FIGURES, name)
    save_figure(figure, path)
    publish(trainer, path, FIGURES)
