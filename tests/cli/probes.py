"""Callbacks that tests add to runs in other processes."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDictBase

from flowmatch_rl.data import episodes


def digest(tensors: Any) -> str:
    """Hash of tensors, in their order."""
    return hashlib.sha256(b"".join(x.detach().cpu().contiguous().numpy().tobytes() for x in tensors)).hexdigest()


class Started(Callback):
    """Touches a file after some updates.

    Args:
        path: The file.
        batches: Number of updates.
    """

    def __init__(self, path: str, batches: int = 3) -> None:
        self.path, self.batches = Path(path), batches

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.batches:
            self.path.touch()


class RankReport(Callback):
    """Writes what a process holds, and a number it draws, when training ends.

    Args:
        folder: Existing folder of ``rank<number>.json``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.start = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = digest(pl_module.parameters())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # pyright: ignore
        held = data.replay
        report = {
            "world_size": trainer.world_size,
            "start": self.start,
            "weights": digest(pl_module.parameters()),
            "lagging": digest(pl_module.critics.target.parameters()),  # pyright: ignore
            "moments": pl_module.units.observations.moments.tolist(),  # pyright: ignore
            "reward_moments": pl_module.units.rewards.moments.tolist(),  # pyright: ignore
            "temperature": float(pl_module.temperature),  # pyright: ignore
            "observations": digest([held["observation"]]),
            "starts": held["observation"][:1].tolist(),
            "actions": held["action"].flatten().tolist(),
            "rows": len(held),
            "draw": torch.randn(4).tolist(),
            "env_steps": data.env_steps,
            "gradient_steps": trainer.global_step,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(report))


class Batches(Callback):
    """Adds a line with the hash of every training batch to a file, and perhaps ends the run like a user.

    An actor-critic must take one batch in a step of the trainer.

    Args:
        path: The file.
        interrupt_after: Updates after which to raise ``KeyboardInterrupt``, or None.
    """

    def __init__(self, path: str, interrupt_after: int | None = None) -> None:
        self.path, self.interrupt_after = Path(path), interrupt_after

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        entries = batch.flatten_keys() if isinstance(batch, TensorDictBase) else batch
        with self.path.open("a") as file:
            file.write(digest(entries.values()) + "\n")
        if trainer.global_step == self.interrupt_after:
            raise KeyboardInterrupt


class FlowRankReport(Callback):
    """Writes what a process that trains on stored data holds, has seen and draws, when training ends.

    Args:
        folder: Existing folder of ``rank<number>.json``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.start = ""
        self.batches: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        episodes.UPDATES_PER_ROUND = 1  # an actor-critic takes its batches one by one, so that they are seen here

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = digest(pl_module.parameters())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        entries = batch.flatten_keys() if isinstance(batch, TensorDictBase) else batch
        self.batches.append(digest(entries.values()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, data = pl_module, trainer.datamodule  # pyright: ignore
        report = {
            "world_size": trainer.world_size,
            "start": self.start,
            "weights": digest(weight for weight in module.parameters() if weight.requires_grad),
            "lagging": digest(weight for weight in module.parameters() if not weight.requires_grad),
            "batches": self.batches,
            "draw": torch.randn(4).tolist(),
            "place": data.state_dict(),
            "gradient_steps": trainer.global_step,
        }
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(report))


class Signals(Callback):
    """Ends a run by a signal, in the middle of its fourth update or of its first evaluation, which takes long.

    Args:
        path: File that is touched when the signal comes.
        number: Number of the signal.
        evaluates: Whether it comes in an evaluation, of whichever command.
    """

    def __init__(self, path: str, number: int, evaluates: bool) -> None:
        self.path, self.number, self.evaluates = Path(path), number, evaluates

    def on_validation_batch_start(self, *_: Any) -> None:
        if self.evaluates:
            self._send()
            for _ in range(300):
                time.sleep(0.1)

    def on_test_batch_start(self, *_: Any) -> None:
        self.on_validation_batch_start()

    def on_predict_batch_start(self, *_: Any) -> None:
        self.on_validation_batch_start()

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if not self.evaluates and trainer.global_step == 3:
            self._send()

    def _send(self) -> None:
        self.path.touch()
        os.kill(os.getpid(), self.number)
