"""Every command of the pages runs to its end with tiny sizes, page by page, and leaves what it promises.

The commands of a page run in its order in one folder, as a reader would type them; what they name in ``<...>`` is what
the commands before them left. What is not run is listed with its reason.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmatch_rl.cli import main
from tests.docs.blocks import BLOCKS, COMMANDS, ROOT, Command
from tests.docs.inputs import FILES, GIVEN, write_files
from tests.docs.test_command_blocks import NOT_RUN, PRINTED
from tests.docs.walk import Walk

NOT_HERE = {
    "pip install": "installs packages",
    "pre-commit install": "installs packages",
    "make setup": "installs packages",
    "make check": "what a pull request runs before the tests",
    "make format": "changes the files of the repository",
    "make test": "the tests",
    "make test-all": "the tests",
    "pytest tests/paths": "the tests",
    "python -m pytest": "the tests",
    "make notebooks": "tests/test_notebooks.py runs them",
    "make docs": "tests/docs/test_site.py builds the site",
    "make docs-serve": "tests/docs/test_site.py builds the site",
    "make bench": "hours",
    "python -m benchmarks": "minutes to hours each",
    "docker": "needs Docker",
    "apptainer": "needs Apptainer",
    "sbatch": "needs SLURM; tests/test_examples.py runs the script",
    "srun": "needs SLURM; tests/cli/test_nodes.py sets what srun sets",
    "flowmatch-rl compare -c conf/comparison/control_suite.yaml --output /shared/": "needs SLURM",
}
"""Beginnings of commands that are not run, with the reason."""


def listed(command: Command) -> str:
    """The entry of the list that a command begins with, "" if it is run."""
    return next((start for start in NOT_HERE if command.text.startswith(start) and is_word(command.text, start)), "")


def is_word(text: str, start: str) -> bool:
    """Whether a text ends, or goes on with another word, after its beginning; ``start`` may end within a path."""
    return start.endswith("/") or text[len(start) :][:1] in ("", " ", "/")


RUN = {
    page: [command for command in COMMANDS if command.page == page and not listed(command)]
    for page in dict.fromkeys(command.page for command in COMMANDS)
}


def printed(command: Command) -> list[str]:
    """What a page says that a command prints: blocks between it and the next one."""
    page = [other.line for other in COMMANDS if other.page == command.page and other.line > command.line]
    between = range(command.line, min(page, default=sys.maxsize))
    starts = [start for start, why in NOT_RUN.get(command.page, {}).items() if why == PRINTED]
    shown = [block.text for block in BLOCKS if block.page == command.page and block.line in between]
    return [text.strip() for text in shown if text.startswith((*starts,))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the configurations of the repository."""
    for name in ("conf", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("MLFLOW_TRACKING_URI", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for name in {Path(block.file).stem for block in BLOCKS} | {Path(name).stem for name in FILES}:
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.usefixtures("without_drawings")
@pytest.mark.parametrize("page", [page for page, commands in RUN.items() if commands])
def test_the_commands_of_a_page_run(page: str, folder: Path) -> None:
    walk = Walk(RUN[page])
    write_files(page, folder)
    wrong = []
    given = [Command.read(page, 0, 0, text) for text in GIVEN.get(page, [])]
    try:
        for command in [*given, *RUN[page]]:
            assert command is not None
            try:
                walk.take(command)
                assert all(text in walk.said for text in printed(command)), walk.said
            except AssertionError as error:
                wrong.append(f"{command.name}: {command.text}\n    {error}")
            except Exception as error:
                error.add_note(f"{command.name}: {command.text}")
                raise
    finally:
        walk.end()
    assert not wrong, "\n".join(wrong)


def test_every_command_of_the_program_stands_in_a_page_that_is_run() -> None:
    shown = {command.arguments[0] for commands in RUN.values() for command in commands if command.arguments}
    assert set(main.COMMANDS) <= shown


def test_the_lists_hold_nothing_that_no_page_has() -> None:
    assert {*NOT_HERE} == {listed(command) for command in COMMANDS} - {""}
    assert set(GIVEN) <= {page for page, commands in RUN.items() if commands}
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in RUN)
    assert [name for name in FILES if name not in pages] == []
