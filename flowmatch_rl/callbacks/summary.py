"""The last lines a run prints."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger


def summary(trainer: Trainer) -> str:
    """The result of the final evaluation and where everything lies.

    Args:
        trainer: A Trainer that has just tested.
    """
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    root = Path(trainer.default_root_dir)
    lines = [
        f"return       {metrics['test/return_mean']:.1f} +- {metrics['test/return_std']:.1f} (mean and standard "
        f"deviation of {metrics['test/episodes']:.0f} episodes, mean length {metrics['test/episode_length']:.0f})",
    ]
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
