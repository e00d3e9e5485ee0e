"""The notebooks run, are what jupytext makes of their Python files, and hold no output."""

from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_has_both_of_its_files() -> None:
    assert NOTEBOOKS
    assert sorted(path.with_suffix(".ipynb") for path in (ROOT / "notebooks").glob("*.py")) == NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its fast mode, whose own assertions are those of the full one; about half a minute on a core of its own."""
    for name, value in (
        ("FLOWMATCH_FAST", "1"),
        ("OMP_NUM_THREADS", "1"),
        ("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("PYTHONPATH", str(ROOT)),  # of a kernel that starts in another folder
    ):
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    assert not any(tmp_path.iterdir()), "a notebook leaves nothing behind"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_python_file_says(path: Path) -> None:
    made = jupytext.read(path.with_suffix(".py"))
    assert cells(nbformat.read(path, as_version=4)) == cells(made), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_output(path: Path) -> None:
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code), "clear the outputs"
    assert all(cell.execution_count is None for cell in code), "clear the outputs"
