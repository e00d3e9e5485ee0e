"""Several updates in a step of the trainer are the updates that they would be in steps of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.data import episodes
from flowmatch_rl.data.base import batch_loader
from flowmatch_rl.rounds import Round
from tests.cli.support import default_signals
from tests.test_exact_resume import End, difference, fit

NAME = "soft, 3 steps"


class Remembers(DummyLogger):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        timeless = {name: value for name, value in metrics.items() if not name.endswith("_per_s")}
        self.entries.append((step, timeless))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    with default_signals():
        yield


def in_rounds_of(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "UPDATES_PER_ROUND", number)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_rounds_leave_weights_generators_buffer_and_metrics_as_they_are(
    precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, logged = [], []
    for number in (1, 8):
        in_rounds_of(number, monkeypatch)
        logger = Remembers()
        fit(NAME, tmp_path / str(number), logger=logger, precision=precision)
        ends.append(End.of(tmp_path / str(number)))
        logged.append([entry for entry in logger.entries if entry[1]])
    assert difference(ends[1].state, ends[0].state) == ""
    assert ends[1].curve == ends[0].curve
    assert logged[1] == logged[0]
    assert sum("train/loss" in metrics for _, metrics in logged[1]) == 4  # of 21 updates, every fifth


def test_a_checkpoint_of_updates_that_lightning_counted_is_resumed_in_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    in_rounds_of(1, monkeypatch)
    fit(NAME, whole)
    fit(NAME, parts, ends_at=10)
    last = parts / "checkpoints" / "last.ckpt"
    state = read_checkpoint(last)
    counted = state["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
    counted["total"] = {"ready": 0, "completed": 0}  # as version 0.2.0 wrote it
    torch.save(state, last)
    in_rounds_of(3, monkeypatch)
    fit(NAME, parts, resumes=True)
    assert difference(End.of(parts).state, End.of(whole).state) == ""


def test_a_run_stops_within_a_round_after_its_last_step(tmp_path: Path) -> None:
    fit(NAME, tmp_path, max_steps=4)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_a_pass_of_rounds_makes_each_batch_when_it_is_taken_and_continues_within_a_round() -> None:
    made: list[int] = []
    loader = batch_loader(7, lambda place: made.append(place) or place, per_round=3)
    rounds = iter(loader)
    first = next(rounds)
    assert (isinstance(first, Round), len(loader), len(first), made) == (True, 3, 3, [])
    taken = iter(first)
    assert (next(taken), next(taken), made) == (0, 1, [0, 1])
    state = loader.state_dict()
    assert state == {"made": 2, "of": 7, "processes": 1, "per_round": 3}

    resumed = batch_loader(7, lambda place: place, per_round=3)
    resumed.load_state_dict(state)
    assert [list(each) for each in resumed] == [[2], [3, 4, 5], [6]]
    assert [list(each) for each in resumed] == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_pass_of_single_batches_continues_in_rounds_at_the_batch_and_step_of_the_trainer() -> None:
    moved: list[int] = []
    resumed = batch_loader(7, lambda place: place, per_round=3)
    resumed.on_moved = moved.append
    resumed.load_state_dict({"made": 4, "of": 7, "processes": 1})
    assert [list(each) for each in resumed] == [[4, 5], [6]]
    resumed.load_state_dict({"made": 7, "of": 7, "processes": 1})
    assert moved == [1, 3]
