"""Fixtures of the command line's tests."""

import pytest

from flowmatch_rl.callbacks import PolicyFigures, figures


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing: figures take longer than the rest of a tiny run, and one run draws them all."""
    monkeypatch.setattr(PolicyFigures, "_policy", lambda *_: None)
    for name in ("draw_episodes", "draw_learning_curve", "_write"):
        monkeypatch.setattr(figures, name, lambda *_: None)
