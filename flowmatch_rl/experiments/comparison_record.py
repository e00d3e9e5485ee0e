"""What the runs in a comparison's folder were made with, kept beside them as ``comparison.json``."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flowmatch_rl.experiments.comparison_runs import OUTPUT, holds_work

RECORD = "comparison.json"
"""Name of the record in a comparison's folder."""


def define(tasks: dict[str, Any], methods: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The definition of a comparison, with the contents of its files: comments and layout do not matter.

    Args:
        tasks: Tasks by name.
        methods: Methods by name.
        options: Options of all runs.
    """
    return {
        "tasks": {name: _with_contents(task) for name, task in tasks.items()},
        "methods": {name: _with_contents(method) for name, method in methods.items()},
        "options": options,
    }


def read(output: Path) -> dict[str, Any] | None:
    """The record of a folder; None without one.

    Args:
        output: Folder of the comparison.

    Raises:
        ValueError: If the file is damaged.
    """
    path = output / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("tasks", "methods", "options", "runs", "parent_run")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a comparison") from error


def write(
    output: Path, definition: dict[str, Any], runs: Sequence[tuple[str, str, int]], parent_run: str | None
) -> Path:
    """Write the record. Tasks and methods that have runs stay in it when the definition drops them.

    Args:
        output: Folder of the comparison.
        definition: See ``define``.
        runs: Task, method and seed of each run.
        parent_run: MLflow run of the whole.

    Returns:
        Path of the file.
    """
    known = read(output) or {"tasks": {}, "methods": {}}
    record = definition | {"runs": runs, "parent_run": parent_run}
    for kind, number in {"tasks": 0, "methods": 1}.items():
        kept = {name for name in known[kind] if any(run[number] == name for run in existing_runs(output))}
        record[kind] = definition[kind] | {k: v for k, v in known[kind].items() if k in kept - definition[kind].keys()}
    path = output / RECORD
    partial = path.with_name(f"{path.name}.tmp{os.getpid()}")
    partial.write_text(json.dumps(record, indent=2))
    partial.replace(path)
    return path


def check_unchanged(output: Path, definition: dict[str, Any]) -> None:
    """Refuse a definition that is not what runs in the folder were made with; more methods or seeds are fine.

    Runs that ended before their first checkpoint do not count: they begin anew.

    Args:
        output: Folder of the comparison.
        definition: See ``define``.

    Raises:
        ValueError: If runs of a task or method exist whose definition was another, or options of all runs were.
    """
    known = read(output)
    runs = [place for place in existing_runs(output) if holds_work(output.joinpath(*map(str, place)))]
    if known is None or not runs:
        return
    # As the file holds it: tuples are lists there, and keys words.
    given = json.loads(json.dumps(definition))
    for kind, number, word in (("tasks", 0, "task"), ("methods", 1, "method")):
        for name in dict.fromkeys(run[number] for run in runs):
            if name in given[kind] and name in known[kind]:
                _refuse_change(f"{word} {name!r} is not", known[kind][name], given[kind][name], output)
    shared = [{"options": side["options"]} for side in (known, given)]
    _refuse_change("what all runs share is not", shared[0], shared[1], output)


def planned_runs(record: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Task, method and seed of the runs of a record.

    Args:
        record: See ``read``.
    """
    return [(task, method, seed) for task, method, seed in record["runs"]]


def existing_runs(output: Path) -> list[tuple[str, str, int]]:
    """Task, method and seed of the runs that were ever started in a folder.

    Args:
        output: Folder of the comparison.
    """
    places = [path.relative_to(output).parts for path in sorted(output.glob(f"*/*/*/{OUTPUT}"))]
    return [(task, method, int(seed)) for task, method, seed, _ in places if seed.isdigit()]


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


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by name, dots between levels.

    Args:
        tree: Values by name, some of them such trees.
        prefix: What goes before each name.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _with_contents(entry: Any) -> dict[str, Any]:
    layers = {str(place): yaml.safe_load(Path(path).read_text()) for place, path in enumerate(entry.config, 1)}
    return dataclasses.asdict(entry) | {"layers": layers}


def _refuse_change(what: str, known: dict[str, Any], given: dict[str, Any], output: Path) -> None:
    if (difference := first_difference(known, given)) is not None:
        key, there, here = difference
        raise ValueError(
            f"{what} what runs in {output} were made with: {key} was {there}, is {here}; "
            "take another name or another folder for it"
        )
