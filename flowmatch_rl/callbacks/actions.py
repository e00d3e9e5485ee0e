"""Writes samples of a policy that was trained on a bandit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import ACTION
from flowmatch_rl.callbacks.artifacts import writes_files
from flowmatch_rl.files import ACTIONS, atomic_path

_NUMBER = 1_000


class ActionWriter(Callback):
    """Writes ``actions.csv`` in the run's folder: the first thousand actions in [-1, 1] that a test has sampled."""

    def on_test_batch_end(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the file."""
        if not writes_files(trainer):
            return
        actions = outputs[ACTION][:_NUMBER].cpu().numpy()
        table = pd.DataFrame(actions, columns=[f"action_{place}" for place in range(actions.shape[1])])
        with atomic_path(Path(trainer.default_root_dir) / ACTIONS) as partial:
            table.to_csv(partial, index=False, float_format="%.4f")
