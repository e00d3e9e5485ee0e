"""Fixtures of the command line's tests."""

import pytest

from flowmatch_rl.callbacks import PolicyFigures, curves, figures


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
