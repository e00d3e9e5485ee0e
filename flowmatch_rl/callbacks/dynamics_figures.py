"""The figure of a one-step model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import read_rollouts
from flowmatch_rl.callbacks.artifacts import write_figure, writes_files
from flowmatch_rl.callbacks.curves import data_label
from flowmatch_rl.evaluation import rollout_errors
from flowmatch_rl.figures import draw_rollout_errors

_STEPS = (1, 2, 4, 8, 16, 32, 64)


class DynamicsFigures(Callback):
    """Draws ``figures/dynamics.png``: how far a one-step model departs from the trajectories of the final evaluation.

    Args:
        num_states: Source states, at most.
    """

    def __init__(self, num_states: int = 64) -> None:
        self.num_states = num_states

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the figure from the first batch, where the module has a one-step model and there are trajectories."""
        module: Any = pl_module
        if not writes_files(trainer) or batch_idx or dataloader_idx or module.dynamics is None:
            return
        rollouts = read_rollouts(batch)
        parts = {k: None if part is None else part[: self.num_states] for k, part in vars(rollouts).items()}
        errors = rollout_errors(module.dynamics, module.policy, dataclasses.replace(rollouts, **parts), _STEPS, seed=1)
        if errors.steps:
            label = data_label(trainer)
            title = f"{label}: the one-step model, followed" if label else "the one-step model, followed"
            write_figure(trainer, draw_rollout_errors(errors, title), "dynamics.png")
