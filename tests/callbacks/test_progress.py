"""The progress bar: rates without the warm-up, no more steps than there are, nothing glued to it."""

import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowmatch_rl.callbacks import Progress, Throughput
from flowmatch_rl.cli import run
from flowmatch_rl.rounds import Round
from tests.callbacks.stand_ins import stand_in_trainer
from tests.cli.support import TWO_MOONS, flow_arguments, run_folder


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


def test_a_run_without_an_end_shows_how_far_it_is(tmp_path: Path, clock: Any, capsys: Any) -> None:
    progress = Progress()
    trainer = stand_in_trainer(
        tmp_path, lightning_module=SimpleNamespace(), estimated_stepping_batches=float("inf"), global_step=0
    )
    progress.on_train_start(trainer, Any)
    for step, seconds in ((1, 10.0), (5, 12.0)):
        trainer.global_step, clock.now = step, seconds
        progress.on_train_batch_end(trainer, Any, None, None, 0)
    progress.on_train_end(trainer, Any)
    assert capsys.readouterr().err.rstrip().endswith("updates: 5step [00:02,  2.00step/s]")


@pytest.mark.parametrize("counted", [False, True], ids=["updates", "environment steps"])
def test_rates_are_logged_in_the_round_that_passes_the_interval(tmp_path: Path, counted: bool) -> None:
    logged: list[tuple[int, set[str]]] = []
    logger = SimpleNamespace(log_metrics=lambda values, step: logged.append((step, set(values))), save=lambda: None)
    module = SimpleNamespace(log_dict=lambda *_, **__: None, loggers=[logger])
    data = SimpleNamespace(env_steps=0, total_env_steps=400) if counted else None
    trainer = stand_in_trainer(tmp_path, datamodule=data, log_every_n_steps=100, global_step=0)
    throughput: Any = Throughput()
    throughput.on_train_epoch_start(trainer, module)
    for number in range(1, 27):
        trainer.global_step = 8 * number
        if data is not None:
            data.env_steps = 16 * number
        throughput.on_train_batch_end(trainer, module, None, Round(8, lambda place: place), number)
    names = {"train/gradient_steps_per_s"} | ({"train/env_steps_per_s"} if counted else set())
    assert logged == [(208 if counted else 104, names), (400 if counted else 200, names)]


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a terminal shows of a run, a test and a prediction of its checkpoint, standard output and error in one."""
    folder = tmp_path_factory.mktemp("run")
    screens = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("fit", "test", "predict"):
            changes = {} if command == "fit" else {"ckpt_path": "run/checkpoints/last.ckpt"}
            options: dict[str, Any] = {
                "trainer__enable_progress_bar": None,
                "trainer__default_root_dir": "run",
            } | changes
            screen = io.StringIO()
            with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen), run_folder():
                assert run(flow_arguments(command, TWO_MOONS, **options)) == 0, screen.getvalue()
            screens[command] = screen.getvalue()
    return screens


def test_a_run_begins_with_its_folder_its_device_and_its_sizes(screens: dict[str, str]) -> None:
    lines = dict(line.split(maxsplit=1) for line in screens["fit"].splitlines()[:5])
    assert list(lines) == ["run", "device", "model", "training", "learns"]
    assert lines["run"] == "run"
    assert re.fullmatch(r"cpu, \d+ threads?, precision 32-true", lines["device"])
    assert re.fullmatch(r"FlowMatchingModel, [\d,]+ weights", lines["model"])
    assert lines["training"] == "12 updates of batch 16"


@pytest.mark.parametrize("command", ["fit", "test"])
def test_results_are_printed_once(screens: dict[str, str], command: str) -> None:
    shown = screens[command]
    assert len(re.findall(r"^distance ", shown, re.MULTILINE)) == 1
    assert "test/" not in shown
    assert "DataLoader" not in shown


def test_what_a_prediction_wrote_is_on_a_line_of_its_own(screens: dict[str, str]) -> None:
    assert "20 samples in run/samples.csv" in screens["predict"].splitlines()
    assert "100%|" in screens["predict"]
