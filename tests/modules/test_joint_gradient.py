"""The gradient of two processes is that of one process on the batches of both."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import SAMPLE, SOURCE
from flowmatch_rl.data.base import batch_loader
from flowmatch_rl.modules import FlowMatchingModel
from tests.modules.test_flow_matching import model
from tests.processes import in_processes

ROWS = 12


class Gradient(Callback):
    """Keeps the gradient as backward leaves it, before it is clipped."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.found = {
            name: weight.grad.clone() for name, weight in pl_module.named_parameters() if weight.requires_grad
        }


def gradient(folder: Path, rank: int = 0, world_size: int = 1) -> tuple[dict[str, Tensor], FlowMatchingModel]:
    """Gradient of the first update on the rows of one of several processes, under fixed noise and times."""
    generator = torch.Generator().manual_seed(1)
    own = slice(rank, None, world_size)
    sample, source = (torch.randn(ROWS, 2, generator=generator)[own] for _ in range(2))
    times = torch.rand(1, ROWS, generator=generator)[:, own]
    module, kept = model(), Gradient()
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=1,
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept],
    )
    with mock.patch("torch.rand", lambda *size, **_: times.expand(*size)):
        trainer.fit(module, batch_loader(1, lambda _: {SAMPLE: sample, SOURCE: source}))
    return kept.found, module


def write(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    found, module = gradient(folder, rank, 2)
    torch.save({"gradient": found, "weights": module.state_dict()}, folder / f"gradient{rank}.pt")


@pytest.mark.ddp
def test_two_processes_have_the_gradient_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    for ended in in_processes("tests.modules.test_joint_gradient:write", tmp_path):
        assert ended.code == 0, ended.err
    wanted, module = gradient(tmp_path)
    first, second = (torch.load(tmp_path / f"gradient{rank}.pt", weights_only=True) for rank in (0, 1))
    assert max(float(part.abs().max()) for part in wanted.values()) > 1e-3
    for got in (first, second):
        torch.testing.assert_close(got["gradient"], wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(first["weights"], dict(module.state_dict()), rtol=1e-4, atol=1e-6)
