"""Fixtures of the experiments' tests."""

import sys
from collections.abc import Iterator

import pytest

from flowmatch_rl.cli import comparisons
from flowmatch_rl.experiments import comparison, plan, report
from tests.cli.support import default_signals
from tests.experiments.comparisons import STAND_IN, write_names


@pytest.fixture
def stand_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PROGRAM", (sys.executable, str(STAND_IN)))
    monkeypatch.setattr(comparisons, "check_runs", lambda jobs: None)


@pytest.fixture
def stand_in(stand_in_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time, and a report that draws nothing."""
    monkeypatch.setattr(comparison, "write_report", write_names)


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers that a command in the foreground starts with."""
    with default_signals():
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: figures take longer than the rest, and some tests draw all there are."""
    for name in ("draw_task", "draw_aggregate", "draw_comparison"):
        monkeypatch.setattr(report, name, lambda *_: None)
    monkeypatch.setattr(report, "draw_bandit_samples", lambda _: None)
    monkeypatch.setattr(report, "encode_figure", lambda _: b"")
    monkeypatch.setattr(report, "save_figure", lambda _, path: path.touch())
