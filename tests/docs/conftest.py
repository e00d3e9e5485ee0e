"""Fixtures of the tests of the pages."""

import imageio.v3
import numpy as np
import pytest

from flowmatch_rl.callbacks import artifacts


@pytest.fixture
def without_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a dot in place of figures: drawing takes longer than the rest of a tiny run."""
    monkeypatch.setattr(artifacts, "save_figure", lambda figure, path: imageio.v3.imwrite(path, np.zeros((1, 1), "u1")))
