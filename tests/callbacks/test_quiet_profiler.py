"""The profiler that measures nothing."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from flowmatch_rl.callbacks import QuietProfiler


def test_contexts_may_be_nested_and_pass_errors_on() -> None:
    profiler = QuietProfiler()
    with pytest.raises(ZeroDivisionError), profiler.profile("one"), profiler.profile("other"):
        raise ZeroDivisionError
    with profiler.profile("one"):
        assert profiler.summary() == PassThroughProfiler().summary()


def test_a_trainer_takes_it() -> None:
    trainer = Trainer(logger=False, enable_progress_bar=False, profiler=QuietProfiler())
    assert isinstance(trainer.profiler, QuietProfiler)  # pyright: ignore[reportAttributeAccessIssue]
