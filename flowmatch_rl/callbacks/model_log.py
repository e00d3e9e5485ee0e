"""The policy that a run has trained, packed and logged to MLflow as a model."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDictBase

from flowmatch_rl.batches import OBSERVATION
from flowmatch_rl.callbacks.artifacts import file_path, writes_files
from flowmatch_rl.callbacks.checkpoints import Checkpoints
from flowmatch_rl.callbacks.tracking import Tracker
from flowmatch_rl.checks import UserError

NAME = "policy"
"""Name of the model, and of its file."""

_ROWS = 2
"""Rows of the example."""

Pack: TypeAlias = Callable[[Path, Path, np.ndarray], dict[str, Any]]


class ModelLog(Callback):
    """Logs the policy of a finished run, the one that its test has measured, to a ``Tracker`` as a model.

    The policy goes to ``model/policy.ckpt`` in the run's folder, without optimizer and replay buffer. A run that was
    interrupted logs none; where the policy cannot be packed, the run warns and ends as it would have.

    Args:
        pack: Writes the policy of a checkpoint (the first path) to a file (the second), given observations, and
            returns what MLflow is told of it.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._trained = False
        self._example: np.ndarray | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that training came to its end."""
        self._trained = True

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first observations as an example."""
        if self._example is None and self._trained and isinstance(batch, TensorDictBase):
            rows: Any = batch[OBSERVATION]
            self._example = rows.flatten(0, -2)[:_ROWS].float().cpu().numpy()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the model at the end of a test that follows a training."""
        trackers = [logger for logger in trainer.loggers if isinstance(logger, Tracker) and logger.logs_model]
        kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]
        if stage != "test" or not (self._trained and writes_files(trainer) and trackers and kept):
            return
        if self._example is None:  # a test without batches
            return
        path = file_path(trainer, "model", f"{NAME}.ckpt")
        try:
            description = self._pack(Path(kept[0].last_model_path), path, self._example)
        except (UserError, OSError) as error:
            warnings.warn(f"the policy is not logged as a model: {error}", stacklevel=1)
            return
        metrics = [name for name in trainer.callback_metrics if name.startswith("test/")]
        step = int(trainer.callback_metrics.get("step", trainer.global_step))
        for tracker in trackers:
            tracker.log_model(NAME, path, step, description | {"metrics": metrics})
