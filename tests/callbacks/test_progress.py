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
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes standard error for a terminal."""
    monkeypatch.setattr("flowmatch_rl.callbacks.progress.is_terminal", lambda: True)


@pytest.fixture
def bar(tmp_path: Path) -> tuple[Progress, Any]:
    data = SimpleNamespace(env_steps=0, total_env_steps=40)
    trainer = stand_in_trainer(tmp_path, datamodule=data, lightning_module=SimpleNamespace())
    return Progress(), trainer


@pytest.mark.usefixtures("terminal")
def test_rate_and_remaining_time_leave_the_warm_up_out(bar: Any, clock: Any, capsys: Any) -> None:
    progress, trainer = bar
    progress.on_train_start(trainer, None)
    trainer.datamodule.env_steps, clock.now = 20, 100.0
    progress.on_train_batch_end(trainer, None, None, None, 0)
    trainer.datamodule.env_steps, clock.now = 30, 120.0
    progress.on_train_end(trainer, None)
    assert capsys.readouterr().err.rstrip().endswith("30/40 [00:20<00:20,  2.00s/step]")


@pytest.mark.usefixtures("terminal")
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


@pytest.mark.usefixtures("terminal")
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


def evaluate_at(progress: Progress, trainer: Any, clock: Any, step: int, seconds: float, result: float) -> None:
    trainer.datamodule.env_steps, clock.now = step, seconds
    progress.on_train_batch_end(trainer, Any, None, None, 0)
    trainer.callback_metrics = {"val/return_mean": result}
    progress.on_validation_end(trainer, Any)


def test_a_pipe_gets_a_line_of_words_per_evaluation_and_no_control_characters(
    bar: Any, clock: Any, capsys: Any
) -> None:
    progress, trainer = bar
    trainer.lightning_module = SimpleNamespace(progress_metrics=(("return", "val/return_mean"), ("critic", "none")))
    progress.on_train_start(trainer, Any)
    trainer.datamodule.env_steps, clock.now = 10, 50.0
    progress.on_train_batch_end(trainer, Any, None, None, 0)
    evaluate_at(progress, trainer, clock, 20, 70.0, -1.5)
    evaluate_at(progress, trainer, clock, 40, 90.0, -0.5)
    progress.on_train_end(trainer, Any)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "20 env steps of 40 (50%), return -1.5, 0.5 per second, 00:40 left",
        "40 env steps of 40 (100%), return -0.5, 0.75 per second",
    ]


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_remark_is_printed_on_a_line_of_its_own_when_it_begins_to_hold(
    bar: Any, clock: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, on_terminal: bool
) -> None:
    monkeypatch.setattr("flowmatch_rl.callbacks.progress.is_terminal", lambda: on_terminal)
    progress, trainer = bar
    said = iter([{}, {"a": "first"}, {"a": "first, otherwise", "b": "second"}, {}, {"a": "again"}])
    trainer.lightning_module = SimpleNamespace(remarks=lambda: next(said))
    progress.on_train_start(trainer, Any)
    for number in range(1, 6):
        evaluate_at(progress, trainer, clock, 8 * number, 10.0 * number, 0.0)
    progress.on_train_end(trainer, Any)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert [line for line in lines if "warning" in line] == [
        f"flowmatch-rl: warning: {text}" for text in ("first", "second", "again")
    ]


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


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_no_control_characters_get_into_a_pipe(screens: dict[str, str], command: str) -> None:
    assert screens[command].replace("\n", "").isprintable()


def test_a_run_prints_a_line_per_evaluation_into_a_pipe(screens: dict[str, str]) -> None:
    lines = [line for line in screens["fit"].splitlines() if " updates of 12 (" in line]
    assert [line.partition(",")[0] for line in lines] == ["6 updates of 12 (50%)", "12 updates of 12 (100%)"]
    assert all("distance" in line and "per second" in line for line in lines)
