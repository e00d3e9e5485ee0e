"""Fixtures of the command line's tests."""

from collections.abc import Iterator

import pytest

from flowmatch_rl.callbacks import PolicyFigures, curves, figures
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
def signals() -> Iterator[None]:
    """The handlers that a command in the foreground starts with."""
    with default_signals():
        yield
