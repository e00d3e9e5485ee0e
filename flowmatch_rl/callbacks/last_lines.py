"""The last lines a run prints."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger


def summary(trainer: Trainer) -> str:
    """The result of the final evaluation, as the module's ``result_lines`` tells it, and where everything lies.

    Args:
        trainer: A Trainer that has just tested.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    root = Path(trainer.default_root_dir)
    module: Any = trainer.lightning_module
    lines = module.result_lines(metrics) if hasattr(module, "result_lines") else []
    for label, pattern in (("checkpoint", "checkpoints/*.ckpt"), ("figure", "figures/*.png"), ("video", "videos/*")):
        lines += [f"{label:<12} {_shown(path)}" for path in sorted(root.glob(pattern))]
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger):
            uri = logger._tracking_uri
            lines.append(f"tracking     MLflow run {logger.run_id} at {uri}")
            if uri.startswith("sqlite"):
                lines.append(f"open it      make ui   (or: mlflow ui --backend-store-uri {uri})")
    return "\n".join(lines)


def _shown(path: Path) -> str:
    """A path relative to the working folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
