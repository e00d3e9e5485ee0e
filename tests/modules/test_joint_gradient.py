"""The gradient of two processes is that of one process on the batches of both."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import SAMPLE, SOURCE
from flowmatch_rl.data.base import batch_loader
from tests.modules import test_reverse_flow_actor_critic as reverse
from tests.modules import test_soft_actor_critic as soft
from tests.modules.occupancy_toys import occupancy, segments
from tests.modules.test_flow_matching import model
from tests.processes import in_processes

ROWS = 14
"""No other dimension of what is drawn is a multiple of 7."""


def pairs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(ROWS, 2, generator=generator) for name in (SAMPLE, SOURCE)}


MODULES: dict[str, tuple[Callable[[], LightningModule], Callable[[], Any]]] = {
    "flow": (model, pairs),
    "soft": (soft.build, lambda: reverse.transitions(ROWS)),
    "reverse flow": (reverse.build, lambda: reverse.transitions(ROWS)),
    "occupancy": (occupancy, lambda: segments(ROWS)),
}


class Gradient(Callback):
    """Keeps the gradient as backward leaves it, before it is clipped."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.found = {
            name: weight.grad.clone() for name, weight in pl_module.named_parameters() if weight.grad is not None
        }


@contextlib.contextmanager
def noise_of_rows(rank: int, world_size: int) -> Iterator[None]:
    """Random numbers that belong to the rows of the joined batch, whichever process draws them."""
    calls, own = itertools.count(), ROWS // world_size

    def drawn(draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """Numbers of the own rows, along the dimension that has as many entries, or several times as many."""
        generator = torch.Generator().manual_seed(next(calls))
        dim = next((dim for dim, size in enumerate(shape) if size % own == 0), None)
        if dim is None:
            return draw(shape, generator=generator)
        before, times, after = shape[:dim], shape[dim] // own, shape[dim + 1 :]
        whole = draw((*before, times, ROWS, *after), generator=generator)
        return whole.movedim(dim + 1, 0)[rank::world_size].movedim(0, dim + 1).reshape(shape)

    def of_shape(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *size, **_: drawn(draw, tuple(size[0] if isinstance(size[0], tuple) else size))

    randn, rand = torch.randn, torch.rand
    with (
        mock.patch("torch.randn", of_shape(randn)),
        mock.patch("torch.rand", of_shape(rand)),
        mock.patch("torch.randn_like", lambda like: drawn(randn, tuple(like.shape))),
        mock.patch("torch.rand_like", lambda like: drawn(rand, tuple(like.shape))),
    ):
        yield


def gradient(name: str, folder: Path, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Gradient of the first update on the rows of one of several processes, and the weights after it."""
    build, joined = MODULES[name]
    batch = joined()
    part = (
        {key: rows[rank::world_size] for key, rows in batch.items()}
        if isinstance(batch, dict)
        else batch[rank::world_size]
    )
    module, kept = build(), Gradient()
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
    with noise_of_rows(rank, world_size):
        trainer.fit(module, batch_loader(1, lambda _: part))
    return {"gradient": kept.found, "weights": dict(module.state_dict())}


def write(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.save({name: gradient(name, folder, rank, 2) for name in MODULES}, folder / f"gradients{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gradients")
    for ended in in_processes(write, folder):
        assert ended.code == 0, ended.err
    return [torch.load(folder / f"gradients{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.ddp
@pytest.mark.parametrize("name", MODULES)
def test_two_processes_have_the_gradient_of_one_on_the_joined_batch(name: str, found, tmp_path: Path) -> None:
    wanted = gradient(name, tmp_path)
    networks = {weight.partition(".")[0] for weight in wanted["gradient"]}
    for network in networks:
        largest = max(float(part.abs().max()) for key, part in wanted["gradient"].items() if key.startswith(network))
        assert largest > 1e-3, network
    assert len(networks) == {"soft": 3, "reverse flow": 2}.get(name, 1), networks
    for rank in (0, 1):
        torch.testing.assert_close(found[rank][name]["gradient"], wanted["gradient"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0][name]["weights"], wanted["weights"], rtol=1e-3, atol=1e-5)
