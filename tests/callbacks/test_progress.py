"""The progress bar: rates without the warm-up, no more steps than there are, nothing glued to it."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowmatch_rl.callbacks import Progress
from tests.callbacks.stand_ins import stand_in_trainer
from tests.cli.support import TWO_MOONS, flow_arguments, run_folder
from flowmatch_rl.cli import run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    seconds = SimpleNamespace(now=0.0)
    monkeypatch.setattr("tqdm.std.time", lambda: seconds.now)
    return seconds


@pytest.fixture
def bar(tmp_path: Path) -> tuple[Progress, Any]:
    data = SimpleNamespace(env_steps=0, total_env_steps=40)
    trainer = stand_in_trainer(tmp_path, datamodule=data, lightning_module=SimpleNamespace())
    return Progress(), trainer


def test_rate_and_remaining_time_leave_the_warm_up_out(bar: Any, clock: Any, capsys: Any) -> None:
    progress, trainer = bar
    progress.on_train_start(trainer, None)
    trainer.datamodule.env_steps, clock.now = 20, 100.0
    progress.on_train_batch_end(trainer, None, None, None, 0)
    trainer.datamodule.env_steps, clock.now = 30, 120.0
    progress.on_train_end(trainer, None)
    assert capsys.readouterr().err.rstrip().endswith("30/40 [00:20<00:20,  2.00s/step]")


@pytest.mark.parametrize("resumed_at", [0, 38, 45], ids=["from the start", "resumed", "resumed after its end"])
def test_a_run_that_takes_more_steps_than_it_was_asked_for_ends_at_all_of_them(
    bar: Any, clock: Any, capsys: Any, resumed_at: int
) -> None:
    progress, trainer = bar
    trainer.datamodule.env_steps = resumed_at
    progress.on_train_start(trainer, None)
    for step in range(resumed_at, 46, 3):
        trainer.datamodule.env_steps = step
        clock.now += 1.0
        progress.on_train_batch_end(trainer, None, None, None, 0)
    progress.on_train_end(trainer, None)
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert last.startswith("env steps: 100%|")
    assert "40/40 [" in last


class Screen(io.StringIO):
    """Standard output and error in one, as a terminal shows them."""


@contextlib.contextmanager
def one_screen() -> Iterator[Screen]:
    screen = Screen()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen), run_folder():
        yield screen
