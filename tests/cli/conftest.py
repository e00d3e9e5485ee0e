"""Fixtures of the command line's tests."""

import sys
from collections.abc import Iterator

import pytest

from flowmatch_rl.callbacks import PolicyFigures, curves, figures
from flowmatch_rl.experiments import comparison, comparison_runs
from tests.cli.comparisons import STAND_IN, write_names
from tests.cli.support import default_signals


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: figures take longer than the rest of a tiny run, and one run draws them all."""
    monkeypatch.setattr(PolicyFigures, "_policy", lambda *_: None)
    for module, names in {
        figures: ("draw_episodes", "draw_learning_curve", "write_figure"),
        curves: ("draw_loss_curve", "write_figure"),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: None)


@pytest.fixture
def stand_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_runs, "_PROGRAM", (sys.executable, str(STAND_IN)))


@pytest.fixture
def stand_in(stand_in_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time, and a report that draws nothing."""
    monkeypatch.setattr(comparison, "write_report", write_names)


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers that a command in the foreground starts with."""
    with default_signals():
        yield
