"""Fixtures of several rooms."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EVIL = "evil_module"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files beside this one, some of which take long: a worker that got one last would end alone."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for garbage among what tests make, not among the modules: that would take a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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
