"""Occupancy models, and other modules, trained and tested as the command line would."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from flowmatch_rl.data import OfflineData, PolicyData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.modules import FlowOptimizer, OccupancyModule
from flowmatch_rl.types import Policy

Module = TypeVar("Module", bound=LightningModule)

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
    module, trainer, seconds = fitted_module(data, seed, lambda: kind(**data.dimensions, **arguments))
    trainer.test(module, datamodule=data, verbose=False)
    return module, _metrics(trainer) | {"seconds": seconds}


def fitted(data: OfflineData, seed: int, **arguments: Any) -> tuple[OccupancyModule, dict[str, float]]:
    """A model trained on the whole run of the data, what the training logged last, and its CPU seconds."""
    module, trainer, seconds = fitted_module(data, seed, lambda: OccupancyModule(**data.dimensions, **arguments))
    return module, _metrics(trainer) | {"seconds": seconds}


def fitted_module(
    data: OfflineData | PolicyData, seed: int, build: Callable[[], Module]
) -> tuple[Module, Trainer, float]:
    """A module trained on the whole run of the data, its trainer, and CPU seconds of the training.

    Args:
        data: The data.
        seed: Seed of the module and of the run.
        build: Makes the module, once the seed is set.
    """
    seed_everything(seed, verbose=False)
    module = build()
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
