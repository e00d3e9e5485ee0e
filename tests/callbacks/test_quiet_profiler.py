"""The profiler that measures nothing."""

from typing import Any

import pytest
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

from flowmatch_rl.callbacks import QuietProfiler
from flowmatch_rl.cli import FlowMatchCLI
from tests.cli.support import PENDULUM, arguments


def test_contexts_may_be_nested_and_pass_errors_on() -> None:
    profiler = QuietProfiler()
    with pytest.raises(ZeroDivisionError), profiler.profile("one"), profiler.profile("other"):
        raise ZeroDivisionError
    with profiler.profile("one"):
        assert profiler.summary() == PassThroughProfiler().summary()


@pytest.mark.parametrize(("stated", "kind"), [("null", QuietProfiler), ("simple", SimpleProfiler)])
def test_a_run_has_it_unless_another_one_is_chosen(stated, kind, tmp_path) -> None:
    stated = {"trainer__logger": "false", "trainer__default_root_dir": tmp_path, "trainer__profiler": stated}
    trainer: Any = FlowMatchCLI(arguments("fit", PENDULUM, **stated)[1:], run=False).trainer
    assert type(trainer.profiler) is kind
