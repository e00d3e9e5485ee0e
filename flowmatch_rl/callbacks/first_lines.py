"""The first lines a run prints."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from flowmatch_rl.callbacks.last_lines import tracking_lines
from flowmatch_rl.files import shown


def header(trainer: Trainer, module: LightningModule, data: Any, checkpoint: str | None = None) -> str:
    """Where a run writes, what it runs on, what it trains on, by the data's ``outline``, and how large the model is.

    Args:
        trainer: The Trainer that is about to fit.
        module: The model.
        data: The data.
        checkpoint: Checkpoint that the run resumes from.
    """
    lines = {"run": shown(Path(trainer.default_root_dir))}
    if checkpoint is not None:
        lines["resumes"] = checkpoint
    lines |= {"device": _device(trainer), "model": _model(module)}
    lines |= getattr(data, "outline", {})  # which a user's own data may not have
    return "\n".join([*(f"{label:<12} {text}" for label, text in lines.items()), *tracking_lines(trainer)])


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = str(device)
    if device.type == "cuda":
        name += f" ({torch.cuda.get_device_name(device)})"
    elif device.type == "cpu":
        threads = torch.get_num_threads()
        name += f", {threads} thread{'s' if threads > 1 else ''}"
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    return f"{name}{processes}, precision {trainer.precision}"


def _model(module: LightningModule) -> str:
    """Class of a model and the number of its weights that are trained, by network."""
    total = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    parts = {
        name: sum(weight.numel() for weight in child.parameters() if weight.requires_grad)
        for name, child in module.named_children()
    }
    named = [f"{name} {number:,}" for name, number in parts.items() if number]
    by_network = f" ({', '.join(named)})" if len(named) > 1 and sum(parts.values()) == total else ""
    return f"{type(module).__name__}, {total:,} weights{by_network}"
