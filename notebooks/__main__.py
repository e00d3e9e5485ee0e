"""Run the notebooks from their Python files, and store them with what they print and draw.

python -m notebooks                    all of them, one after another
python -m notebooks 1_flow_matching    some of them
"""

import argparse
import base64
import contextlib
import io
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))


@contextlib.contextmanager
def kernel(folder: Path, fast: bool = False) -> Iterator[nbclient.NotebookClient]:
    """A kernel on one thread, so that the outputs are the same each time.

    Args:
        folder: Working folder of the kernel.
        fast: Whether notebooks run with fewer updates and samples, and draw no pictures.
    """
    environment = {
        "FLOWMATCH_FAST": str(int(fast)),
        "MPLBACKEND": "agg" if fast else "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TQDM_DISABLE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "PYTHONPATH": str(FOLDER.parent),  # of a kernel that starts in another folder
    }
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # else the split of a text depends on when it arrives
    )
    with client.setup_kernel(env=os.environ | environment):
        yield client


def run(notebook: Any, client: nbclient.NotebookClient) -> None:
    """Execute every cell, without the names that an earlier notebook has left in the kernel.

    Args:
        notebook: The notebook, which gets its outputs.
        client: The kernel.

    Raises:
        RuntimeError: If a file is left behind.
    """
    reset = nbformat.v4.new_code_cell("import matplotlib.pyplot as plt\nplt.close('all')\n%reset -f")
    client.nb = nbformat.v4.new_notebook(cells=[reset])  # which the client writes the executed cell to
    client.execute_cell(reset, 0, store_history=False)
    client.nb = notebook
    client.reset_execution_trackers()
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)
    folder = Path(client.resources["metadata"]["path"])
    if left := sorted(path.name for path in folder.iterdir()):
        raise RuntimeError(f"a notebook must leave no files behind, got {left}")


def read(name: str) -> Any:
    """A notebook made of its Python file, without outputs, the same each time."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def small(encoded: str) -> str:
    """A PNG in base64 with 256 colours, a third of the size; an animation as it is."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if getattr(picture, "n_frames", 1) > 1:
        return encoded
    file = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def clean(notebook: Any) -> None:
    """Make pictures small, and remove what differs between machines and is of no interest to a reader.

    That is the version of Python, and texts of objects that the last line of a cell returns, which hold an address.

    Args:
        notebook: An executed notebook, changed in place.
    """
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output for output in cell.outputs if output.output_type != "execute_result" or len(output.data) > 1
            ]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = small(output.data["image/png"])


def main() -> None:
    """Run and store what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m notebooks", description="Run the notebooks and store their outputs."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"expected names of {', '.join(NAMES)}, got {', '.join(unknown)}")
    for name in names or NAMES:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        notebook = read(name)
        with tempfile.TemporaryDirectory() as folder, kernel(Path(folder)) as client:
            run(notebook, client)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        clean(notebook)
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{name}: {seconds:.0f} s of processor time, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
