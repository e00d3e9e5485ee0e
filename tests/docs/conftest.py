"""Fixtures of the tests of the pages."""

import pytest

from flowmatch_rl.callbacks import artifacts


@pytest.fixture
def without_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave files of figures empty: drawing takes longer than the rest of a tiny run."""
    monkeypatch.setattr(artifacts, "save_figure", lambda figure, path: path.touch())
