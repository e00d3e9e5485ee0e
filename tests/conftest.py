"""Fixtures of several rooms."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EVIL = "evil_module"


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that appears if the module of a stranger, ``evil_module``, is imported, which is in reach."""
    path = tmp_path / "it_ran"
    (tmp_path / f"{EVIL}.py").write_text(
        f"import pathlib\npathlib.Path({str(path)!r}).touch()\n"
        "def function(values):\n    return values[..., 0]\n"
        "class Model:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop(EVIL, None)
