"""Wall time of a training: evaluations are left out, the parts of a resumed run are added up."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback

from flowmatch_rl.callbacks import LearningCurve, stopwatch
from flowmatch_rl.callbacks.stopwatch import Stopwatch
from tests.callbacks.stand_ins import tiny_data, tiny_module, tiny_trainer
from tests.callbacks.test_figures import read_table


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_only_the_time_between_start_and_stop_counts(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 5.0
    assert watch.seconds == 0.0
    watch.start()
    clock.now += 2.0
    watch.start()
    clock.now += 1.0
    assert watch.seconds == 3.0
    watch.stop()
    watch.stop()
    clock.now += 7.0
    watch.start()
    clock.now += 0.5
    assert watch.seconds == 3.5


def test_time_of_earlier_parts_is_added_or_makes_the_sum_unknown(clock: Clock) -> None:
    watch = Stopwatch()
    watch.go_on_from(40.0)
    watch.start()
    clock.now += 2.0
    assert watch.seconds == 42.0
    watch.go_on_from(None)
    watch.start()
    assert watch.seconds is None
    watch.stop()
    assert watch.seconds is None


class TakesTime(Callback):
    """An update takes one second, an evaluation a hundred, filming it afterwards ten thousand."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.clock.now += 1.0

    def on_validation_batch_end(self, *_: Any) -> None:
        self.clock.now += 100.0

    def on_validation_end(self, *_: Any) -> None:
        self.clock.now += 10_000.0

    def on_test_end(self, *_: Any) -> None:
        self.clock.now += 1_000_000.0


@pytest.mark.parametrize("callbacks_first", [False, True])
def test_curve_counts_seconds_of_training_over_the_parts_of_a_resumed_run(
    callbacks_first: bool, clock: Clock, tmp_path: Path
) -> None:
    def fit(folder: Path, epochs: int, checkpoint: Path | None) -> list[float]:
        callbacks: list[Callback] = [LearningCurve(), TakesTime(clock)]
        trainer = tiny_trainer(folder, callbacks[::-1] if callbacks_first else callbacks, max_epochs=epochs)
        trainer.fit(tiny_module(), datamodule=tiny_data(), ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(folder / "last.ckpt")
        return [float(row["seconds"]) for row in read_table(folder)]

    assert fit(tmp_path, 1, None) == [10.0]
    clock.now += 1e9
    assert fit(tmp_path, 2, tmp_path / "last.ckpt") == [10.0, 20.0]


def test_evaluation_in_the_middle_of_an_epoch_is_left_out_too(clock: Clock, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [LearningCurve(), TakesTime(clock)], max_epochs=1)
    trainer.val_check_batch = 1  # a round of eight updates; the next one has two
    trainer.val_check_interval = 1  # pyright: ignore[reportAttributeAccessIssue]
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert [float(row["seconds"]) for row in read_table(tmp_path)] == [8.0, 10.0]
