"""Writes the episodes of the ``predict`` command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from tensordict import TensorDictBase

from flowmatch_rl.batches import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED
from flowmatch_rl.schema import ActionBounds


class EpisodeWriter(BasePredictionWriter):
    """Writes ``episodes.npz`` into the run's folder: one row per step, episodes one after another.

    Its arrays are observation (L, S), action in the environment's unit (L, A), reward, terminated, truncated (L,),
    next_observation (L, S), and episode, the index of each step's episode (L,); beside them action_low and action_high,
    the bounds of the action (A,).
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[TensorDictBase],
        batch_indices: Sequence[object],
    ) -> None:
        """Write the file of this process."""
        suffix = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = Path(trainer.default_root_dir) / f"episodes{suffix}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = predictions[0].cpu()
        mask = steps.get("mask")
        keys = {
            "observation": OBSERVATION,
            "action": ACTION,
            "reward": REWARD,
            "next_observation": NEXT_OBSERVATION,
            "terminated": TERMINATED,
            "truncated": ("next", "truncated"),
        }
        arrays: dict[str, Any] = {name: steps.get(key)[mask].numpy() for name, key in keys.items()}
        for name in ("reward", "terminated", "truncated"):
            arrays[name] = arrays[name][:, 0]
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        bounds: ActionBounds = data.spaces.action_bounds
        arrays["action"] = bounds.restore(torch.from_numpy(arrays["action"])).float().numpy()
        arrays |= {"action_low": np.array(bounds.low), "action_high": np.array(bounds.high)}
        arrays["episode"] = mask.nonzero()[:, 0].numpy()
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
        print(f"{int(mask.sum())} steps of {len(mask)} episodes in {path}")
