"""The order of training batches: passes, processes, and runs that go on."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import SAMPLE, Samples
from flowmatch_rl.data import SampleData
from flowmatch_rl.schema import TableSchema
from tests.combinations import each_value
from tests.data.toy_table import VALUES, ToyTable, build, only, rows_of, take


@pytest.mark.parametrize("batch_size", [1, 7, 39, 40])
def test_each_pass_holds_every_training_row_once_in_another_order(batch_size: int) -> None:
    data = build(batch_size=batch_size, num_updates=5, epoch_updates=5)
    batches = take(data, 120)
    assert {len(batch[SAMPLE]) for batch in batches} == {batch_size}
    rows = [row for batch in batches for row in rows_of(batch, data)]
    passes = [rows[i : i + 40] for i in range(0, len(rows) - 39, 40)]
    assert len(passes) >= 3
    assert all(len(set(one)) == 40 for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_processes_draw_different_batches_and_one_process_the_same_again() -> None:
    first, other, again = (
        [rows_of(batch, data) for batch in take(data, 5)]
        for data in (build(rank=rank, world_size=2) for rank in (0, 1, 0))
    )
    assert first == again
    assert first != other


def test_another_seed_gives_other_batches_of_the_same_rows() -> None:
    first, second = build(), build()
    one = take(first, 5)
    torch.manual_seed(1)
    two = take(second, 5)
    assert [rows_of(batch, first) for batch in one] != [rows_of(batch, first) for batch in two]


@each_value
@pytest.mark.parametrize("number", [1, 3, 5, 12])
@pytest.mark.parametrize("rank", [0, 1])
def test_resumed_data_goes_on_with_the_same_batches(number: int, rank: int) -> None:
    """Every process restores the state of the first one."""
    whole = take(build(rank=rank, world_size=2), 20)
    first = build(world_size=2, num_updates=1, epoch_updates=1)
    take(first, number)
    state = first.state_dict()
    second = build(rank=rank, world_size=2, num_updates=1, epoch_updates=1)
    torch.manual_seed(99)
    second.load_state_dict(state)
    for got, wanted in zip(take(second, 20 - number), whole[number:], strict=True):
        assert torch.equal(got[SAMPLE], wanted[SAMPLE])


def test_taking_data_down_keeps_the_place() -> None:
    whole = take(build(), 10)
    data = build(num_updates=4, epoch_updates=4)
    take(data, 4)
    data.teardown("fit")
    for got, wanted in zip(take(data, 4), whole[4:8], strict=True):
        assert torch.equal(got[SAMPLE], wanted[SAMPLE])


def test_going_on_with_another_number_of_rows_is_refused() -> None:
    first = build()
    take(first, 1)
    second = build(val_fraction=0.2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError) as caught:
        second.train_dataloader()
    assert "35 training rows" in str(caught.value)
    assert "40" in str(caught.value)
    only(second.val_dataloader())


class Recorder(LightningModule):
    """Keeps the batches it is given."""

    def __init__(self, schema: TableSchema) -> None:
        super().__init__()
        self.schema = schema
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Tensor] = []

    def training_samples(self, samples: Samples) -> Samples:
        return samples

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen.append(batch[SAMPLE].clone())
        return self.weight * batch[SAMPLE].mean()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.log("rows", float(len(batch[SAMPLE])))

    def predict_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return batch["row"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, max_steps: int, resume: Path | None = None) -> tuple[list[Tensor], Trainer]:
    torch.manual_seed(3)
    data = SampleData(ToyTable(VALUES), batch_size=9, num_updates=15, epoch_updates=5)
    module = Recorder(data.schema)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return module.seen, trainer


@pytest.mark.parametrize("stop", [5, 7], ids=["after an epoch", "within an epoch"])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole, _ = fit(tmp_path, 15)
    assert len(whole) == 15
    before, trainer = fit(tmp_path, stop)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    after, _ = fit(tmp_path, 15, tmp_path / "stopped.ckpt")
    assert len(before) + len(after) == 15
    assert torch.equal(torch.stack(before + after), torch.stack(whole))


def test_a_trainer_predicts_every_row_once() -> None:
    data = SampleData(ToyTable(VALUES), batch_size=9, predict_samples=10, predict_batch_size=4)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    rows = trainer.predict(Recorder(data.schema), datamodule=data)
    assert [some.tolist() for some in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
