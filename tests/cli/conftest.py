"""Fixtures of the command line's tests."""

from collections.abc import Iterator

import pytest

from flowmatch_rl.callbacks import artifacts
from tests.cli.support import default_signals


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave files of figures empty: drawing takes longer than the rest of a tiny run, and one run draws them all."""
    monkeypatch.setattr(artifacts, "save_figure", lambda figure, path: path.touch())


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers that a command in the foreground starts with."""
    with default_signals():
        yield
