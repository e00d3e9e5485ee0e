"""A tiny run, and its resumption, with each of the overlays of trackers."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from flowmatch_rl.callbacks import RunLogger, TensorBoardTracker, WandbTracker
from flowmatch_rl.checks import UserError
from tests.callbacks.fake_server import eventually
from tests.cli.support import CONF, TWO_MOONS, Outcome, call, flow_arguments

FIRST = "val/energy_distance"
LAST = "test/energy_distance"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def trained_twice(name: str, **changes: Any) -> tuple[Outcome, Outcome]:
    """Outcomes of a run of 12 updates, and of its resumption to 18; six between two evaluations."""
    options: dict[str, Any] = {"trainer__logger": None, "trainer__default_root_dir": "run"} | changes
    options |= {"trainer__log_every_n_steps": 3}
    files = (TWO_MOONS, CONF / "logger" / f"{name}.yaml")
    first = call(flow_arguments("fit", *files, **options))
    assert first.code == 0, first.err
    second = call(flow_arguments("fit", *files, **options, data__num_updates=18, ckpt_path="last"))
    assert second.code == 0, second.err
    return first, second


def test_a_table_of_metrics_is_continued(folder: Path) -> None:
    first, second = trained_twice("csv")
    for outcome in (first, second):
        assert outcome.out.count("tracking     run/csv/fit.csv") == 2
    with (folder / "csv" / "fit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row[FIRST]] == [5, 11, 17]
    assert [int(row["step"]) for row in rows if row[LAST]] == [12, 18]
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [2, 5, 8, 11, 14, 17]


def test_tensorboard_shows_metrics_figures_and_parameters_and_continues_them(folder: Path) -> None:
    place = "tensorboard.backend.event_processing.event_accumulator"
    reading = pytest.importorskip(place, reason="needs the extra 'tensorboard'")
    first, second = trained_twice("tensorboard")
    for outcome in (first, second):
        assert outcome.out.count("open it      tensorboard --logdir run/tensorboard/fit") == 2
    kept = reading.EventAccumulator(str(folder / "tensorboard" / "fit"))
    kept.Reload()
    assert [event.step for event in kept.Scalars(FIRST)] == [5, 11, 17]
    assert "figures/learning_curve.png" in kept.Tags()["images"]
    assert b"data.batch_size" in kept.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert {"config.yaml/text_summary", "tags/text_summary"} <= set(kept.Tags()["tensors"])


def test_weights_and_biases_keeps_metrics_figures_and_parameters_and_continues_the_run(folder: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra 'wandb'")
    first, second = trained_twice("wandb", trainer__logger__init_args__mode="offline")
    for outcome in (first, second):
        assert outcome.out.count("deliver it   wandb sync run/wandb/offline-run-") == 2
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert parts[0].name.rpartition("-")[2] == parts[1].name.rpartition("-")[2]
    for part in parts:
        (file,) = part.glob("*.wandb")
        for word in (FIRST, LAST, "data.batch_size", "run/commit"):
            eventually(lambda file=file, word=word: word.encode() in file.read_bytes())
        assert list(part.rglob("figures/learning_curve*.png"))


@pytest.mark.parametrize(
    ("tracker", "module", "extra"),
    [(TensorBoardTracker, "torch.utils.tensorboard", "tensorboard"), (WandbTracker, "wandb", "wandb")],
    ids=["tensorboard", "wandb"],
)
def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tracker: type[RunLogger], module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # which makes its import fail
    with pytest.raises(UserError, match=rf"^{tracker.__name__} needs the extra .+pip install flowmatch_rl\[{extra}\]$"):
        tracker()
