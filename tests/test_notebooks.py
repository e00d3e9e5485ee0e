"""The notebooks run, are what jupytext makes of their Python files, and hold the output of a full run."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from notebooks.__main__ import kernel, read, run

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
UNWANTED = {
    "a path of this machine": r"/(?:home|root|tmp|work|usr|var|Users)/|\.venv",
    "an address in memory": r"\bat 0x[0-9a-f]{4,}",
    "a warning": r"[Ww]arning",
    "a bar": r"\x1b|\r|it/s|%\|",
    "a measured time": r"\b\d+(?:\.\d+)? (?:s|seconds|minutes)\b",
}
"""What a page must not show: it differs from run to run, or is of no use to a reader."""


def cells(notebook: Any) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def texts(cell: Any) -> list[str]:
    """What a cell prints or returns as text."""
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]


def test_every_notebook_has_both_of_its_files() -> None:
    assert NOTEBOOKS
    assert sorted(path.with_suffix(".ipynb") for path in (ROOT / "notebooks").glob("[0-9]*.py")) == NOTEBOOKS


@pytest.fixture(scope="module")
def fast_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel for all notebooks: imports take longer than the rest of most."""
    with kernel(tmp_path_factory.mktemp("notebooks"), fast=True) as client:
        yield client


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, fast_kernel: NotebookClient) -> None:
    """In its fast mode, with fewer updates and samples, where some assertions on trained models are left out."""
    run(nbformat.read(path, as_version=4), fast_kernel)


def of_code(*sources: str) -> Any:
    return new_notebook(cells=[new_code_cell(source) for source in sources])


def test_a_notebook_runs_without_the_names_of_an_earlier_one(fast_kernel: NotebookClient) -> None:
    first = of_code("x = 1", "assert x == 1")
    run(first, fast_kernel)
    assert [source for _, source in cells(first)] == ["x = 1", "assert x == 1"]
    with pytest.raises(CellExecutionError, match="name 'x' is not defined"):
        run(of_code("x"), fast_kernel)
    run(of_code("y = 1"), fast_kernel)


def test_a_notebook_that_leaves_a_file_is_refused(fast_kernel: NotebookClient) -> None:
    with pytest.raises(RuntimeError, match=r"must leave no files behind, got \['left.txt'\]"):
        run(of_code("open('left.txt', 'w').close()"), fast_kernel)
    run(of_code("import os", "os.remove('left.txt')"), fast_kernel)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_python_file_says(path: Path) -> None:
    assert cells(nbformat.read(path, as_version=4)) == cells(read(path.stem)), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_the_output_of_one_run_from_top_to_bottom(path: Path) -> None:
    code = code_cells(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    kinds = {(output.output_type, output.get("name", "stdout")) for cell in code for output in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("display_data", "stdout"), ("execute_result", "stdout")}
    assert not any("execution" in cell.metadata for cell in code), "times of execution"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_prints_is_the_same_in_every_run(path: Path) -> None:
    printed = "\n".join(text for cell in code_cells(path) for text in texts(cell))
    found = {name: match.group() for name, pattern in UNWANTED.items() if (match := re.search(pattern, printed))}
    assert found == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_figures_of_a_notebook_fit_a_page(path: Path) -> None:
    assert path.stat().st_size < 1_000_000
    encoded = [
        output.data["image/png"]
        for cell in code_cells(path)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in encoded]
    assert len(sizes) >= 3
    assert all(300 < width <= 1600 and 200 < height <= 1400 for width, height in sizes), sizes
