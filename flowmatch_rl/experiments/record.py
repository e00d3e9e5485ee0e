"""What the runs in a comparison's folder were made with, kept beside them as ``comparison.json``."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.configuration import flatten
from flowmatch_rl.experiments.executors import is_free
from flowmatch_rl.experiments.plan import OUTPUT, Job
from flowmatch_rl.files import RESULT, lock_file, write_json

RECORD = "comparison.json"
"""Name of the record in a comparison's folder."""

_KINDS = {"tasks": 0, "methods": 1}


@contextlib.contextmanager
def lock_folder(output: Path) -> Iterator[None]:
    """Keep other commands out of the folder of a comparison or a sweep, in a ``with`` block.

    Args:
        output: The folder; it is made if there is none.

    Raises:
        RunError: If another command works in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = lock_file(output / ".lock")
    if lock is None:
        raise RunError(f"another command works in {output}; wait until it ends, or choose another folder")
    with lock:
        yield


def read_record(output: Path) -> dict[str, Any] | None:
    """The record of a folder: its ``tasks``, ``methods``, ``options``, ``runs`` and ``parent_run``; None without one.

    Args:
        output: Folder of the comparison.

    Raises:
        UserError: If the file is damaged.
    """
    path = output / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        runs = [(task, method, seed) for task, method, seed in record["runs"]]
        return {key: record[key] for key in ("tasks", "methods", "options", "parent_run")} | {"runs": runs}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the record of a comparison") from error


def write_record(
    output: Path,
    known: dict[str, Any] | None,
    definition: dict[str, Any],
    jobs: Sequence[Job],
    parent_run: str | None = None,
) -> Path:
    """Write the record. Tasks and methods that have runs stay in it when the definition drops them.

    Args:
        output: Folder of the comparison.
        known: The record that is there, or None.
        definition: Tasks, methods and options.
        jobs: The jobs.
        parent_run: MLflow run of the whole.

    Returns:
        Path of the file.
    """
    known = known or {"tasks": {}, "methods": {}}
    record = definition | {"runs": [(job.task, job.method, job.seed) for job in jobs], "parent_run": parent_run}
    for kind, place in _KINDS.items():
        kept = {run[place] for run in begun_runs(output)} - definition[kind].keys()
        record[kind] = definition[kind] | {name: entry for name, entry in known[kind].items() if name in kept}
    write_json(output / RECORD, record)
    return output / RECORD


def check_unchanged(output: Path, definition: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse a definition that is not what runs in the folder were made with; more methods or seeds are fine.

    Runs that ended before their first checkpoint do not count: they start afresh.

    Args:
        output: Folder of the comparison.
        definition: Tasks, methods and options.

    Returns:
        The record that is there; None without one.

    Raises:
        UserError: If runs of a task or method exist whose definition was another, or options of all runs were.
    """
    known = read_record(output)
    runs = [run for run in begun_runs(output) if _holds_work(Job(*run, output.joinpath(*map(str, run)), ()))]
    if known is None or not runs:
        return known
    given = json.loads(json.dumps(definition))  # as the file holds it: tuples are lists there, and keys words
    for kind, place in _KINDS.items():
        for name in dict.fromkeys(run[place] for run in runs):
            if name in given[kind] and name in known[kind]:
                what = f"{kind.removesuffix('s')} {name!r} is not"
                _refuse_change(what, known[kind][name], given[kind][name], output)
    shared = [{"options": side["options"]} for side in (known, given)]
    _refuse_change("what all runs share is not", shared[0], shared[1], output)
    return known


def begun_runs(output: Path) -> list[tuple[str, str, int]]:
    """Task, method and seed of the runs that were ever started in a folder, or whose records were copied into it.

    Args:
        output: Folder of the comparison.
    """
    folders = {path.parent for name in (OUTPUT, RESULT) for path in output.glob(f"*/*/*/{name}")}
    places = [folder.relative_to(output).parts for folder in sorted(folders)]
    return [(task, method, int(seed)) for task, method, seed in places if seed.isdigit()]


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first key in which two tasks, methods or sets of options differ, and its value on either side.

    Args:
        one: Part of a record.
        other: The same part of another.

    Returns:
        The key, its value in the one and its value in the other, in words; None if they make the same runs.
    """
    first, second = flatten(one), flatten(other)
    for key in [*first, *second]:
        # A scale is for the report alone. Where a file lies is of no importance, what it holds is.
        if key in ("return_range", "config") or (key in first and key in second and first[key] == second[key]):
            continue
        here, there = (repr(side[key]) if key in side else "not set" for side in (first, second))
        return key, here, there
    return None


def _holds_work(job: Job) -> bool:
    """Whether a job has left something in its folder that the same command would resume, or is running there."""
    return job.finished or job.last.is_file() or not is_free(job.folder)


def _refuse_change(what: str, known: dict[str, Any], given: dict[str, Any], output: Path) -> None:
    if (difference := first_difference(known, given)) is not None:
        key, there, here = difference
        raise UserError(
            f"{what} what runs in {output} were made with: {key} was {there}, is {here}; "
            "take another name or another folder for it"
        )
