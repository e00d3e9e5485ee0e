"""Occupancy models trained and tested as the command line would."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from flowmatch_rl.data import OfflineData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.modules import FlowOptimizer, OccupancyModule
from flowmatch_rl.types import Policy

OPTIMIZER = FlowOptimizer(1e-3, weight_decay=1e-3)
"""For runs that are short of those of the paper."""


def collected(folder: Path, environment: ProcessEnvironment, number: int, policy: Policy | None, **options: Any) -> str:
    """Path of a data set, made if it is not there."""
    if not folder.exists():
        collect_transitions(environment, str(folder), number, policy, progress=False, **options)
    return str(folder)


def trained(
    data: OfflineData, seed: int, kind: type[OccupancyModule] = OccupancyModule, **arguments: Any
) -> tuple[OccupancyModule, dict[str, float]]:
    """A model trained on the whole run of the data, what its test finds, and CPU seconds of the training."""
    module, trainer, seconds = _fitted(data, seed, kind, arguments)
    trainer.test(module, datamodule=data, verbose=False)
    return module, _metrics(trainer) | {"seconds": seconds}


def fitted(data: OfflineData, seed: int, **arguments: Any) -> tuple[OccupancyModule, dict[str, float]]:
    """A model trained on the whole run of the data, what the training logged last, and its CPU seconds."""
    module, trainer, seconds = _fitted(data, seed, OccupancyModule, arguments)
    return module, _metrics(trainer) | {"seconds": seconds}


def _fitted(
    data: OfflineData, seed: int, kind: type[OccupancyModule], arguments: dict[str, Any]
) -> tuple[OccupancyModule, Trainer, float]:
    seed_everything(seed, verbose=False)
    module = kind(**data.dimensions, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=data.num_epochs,
            default_root_dir=folder,
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            log_every_n_steps=100,
        )
        began = time.thread_time()
        trainer.fit(module, datamodule=data)
        return module, trainer, time.thread_time() - began


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
