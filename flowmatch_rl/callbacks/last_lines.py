"""The last lines a run prints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger


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
        lines += [f"{label:<12} {_shown(path)}" for path in sorted(root.glob(pattern))]
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger):
            uri = logger.experiment.tracking_uri
            lines.append(f"tracking     MLflow run {logger.run_id} at {uri}")
            if uri.startswith("sqlite"):
                lines.append(f"open it      make ui   (or: mlflow ui --backend-store-uri {uri})")
    return "\n".join(lines)


def _shown(path: Path) -> str:
    """A path relative to the working folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
