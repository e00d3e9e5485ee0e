"""The runs that a report is about, read from their folders."""

import contextlib
import csv
import dataclasses
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from flowmatch_rl.callbacks import RESULT
from flowmatch_rl.callbacks.artifacts import FIGURES
from flowmatch_rl.callbacks.curves import TABLE
from flowmatch_rl.checks import UserError
from flowmatch_rl.configuration import DIMENSIONS, shorten
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.experiments.comparison_record import existing_runs, first_difference, planned_runs, read

_CURVE = f"{FIGURES}/{TABLE}"
_SCORE = "test/return_mean"
_NAMED_SETTINGS = 3


@dataclass(frozen=True)
class RunData:
    """What a run has left so far.

    Attributes:
        folder: Its folder.
        task: What it was trained on.
        method: What was trained.
        curve: Columns ``env_steps``, ``return_mean`` and ``seconds`` of its evaluations, NaN for what is not known,
            each of shape (P,) in float64; P may be 0.
        score: Mean return of its final test; None if it has not ended.
        return_range: Returns that the environment counts as 0 and as 1; None if it states none or is not known yet.
        commit: Commit of the code that ended it; None if it has not ended.
    """

    folder: Path
    task: str
    method: str
    curve: dict[str, Tensor]
    score: float | None
    return_range: tuple[float, float] | None
    commit: str | None


@dataclass(frozen=True)
class Study:
    """The runs of a report.

    Attributes:
        tasks: Names of the tasks, in order.
        methods: Names of the methods, in order.
        runs: Runs that have begun.
        planned: How many runs there are to be of each task and method.
        ranges: Returns that count as 0 and as 1 on each task; None where nobody states them.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    runs: tuple[RunData, ...]
    planned: dict[tuple[str, str], int]
    ranges: dict[str, tuple[float, float] | None]

    def of(self, task: str, method: str) -> list[RunData]:
        """The runs of a method on a task."""
        return [run for run in self.runs if (run.task, run.method) == (task, method)]


def read_study(folders: Sequence[Path]) -> Study:
    """Read the runs in some folders.

    In the folder of a comparison, tasks and methods are those of its record. Elsewhere a run is every folder with a
    learning curve over environment steps; its task is its environment, its method the class of its model with those
    settings in which models of that class differ, in all such folders together.

    Args:
        folders: Folders of comparisons, of runs, or with runs somewhere below.

    Raises:
        ValueError: If a folder does not exist, its files are damaged, or two comparisons mean different things by one
            name.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    records = {folder: record for folder in folders if (record := read(folder)) is not None}
    _check_same_names(records)
    runs: list[RunData] = []
    places: list[tuple[str, str]] = []
    ranges: dict[str, tuple[float, float] | None] = {}
    for folder, record in records.items():
        listed = list(dict.fromkeys([*planned_runs(record), *existing_runs(folder)]))
        found = [_read_run(folder / task / method / str(seed), task, method) for task, method, seed in listed]
        runs += [run for run in found if run.folder.is_dir()]
        places += [(task, method) for task, method, _ in listed]
        stated = {name: task["return_range"] for name, task in record["tasks"].items()}
        ranges |= {name: (float(given[0]), float(given[1])) for name, given in stated.items() if given}
    loose = _runs_below([folder for folder in folders if folder not in records])
    runs += loose
    places += [(run.task, run.method) for run in loose]
    tasks = tuple(dict.fromkeys(task for task, _ in places))
    for task in tasks:
        if task not in ranges:
            ranges[task] = next((run.return_range for run in runs if run.task == task and run.return_range), None)
    methods = tuple(dict.fromkeys(method for _, method in places))
    return Study(tasks, methods, tuple(runs), dict(Counter(places)), ranges)


def _check_same_names(records: Mapping[Path, dict[str, Any]]) -> None:
    """Refuse comparisons that share a task or a method, but not what it is, or the options of all runs."""
    for (folder, record), (other, its) in itertools.combinations(records.items(), 2):
        shared = [(kind, name) for kind in ("tasks", "methods") for name in record[kind] if name in its[kind]]
        sides = [(f"{kind}.{name}", record[kind][name], its[kind][name]) for kind, name in shared]
        for where, first, second in [*sides, ("options", record["options"], its["options"])] if shared else ():
            if (difference := first_difference(first, second)) is not None:
                key, here, there = difference
                raise ValueError(
                    f"{folder} and {other} cannot be put together: {key} in {where} is {here} in one "
                    f"and {there} in the other"
                )


def _runs_below(folders: Sequence[Path]) -> list[RunData]:
    """Runs with a curve over environment steps."""
    found: list[tuple[RunData, dict[str, Any]]] = []
    tables = [
        table
        for folder in folders
        for table in sorted(folder.rglob(_CURVE))
        # MLflow keeps a copy of each tracked run's figures in a folder of this name.
        if table.parents[1].name != "artifacts" or table.parents[1] == folder
    ]
    for table in {table.resolve(): table for table in tables}.values():  # once, also where one folder holds another
        place = table.parents[1]
        with _reading(table), table.open(newline="") as file:
            header = next(csv.reader(file), [])
        if "env_steps" not in header:
            continue  # a generative model's
        config = _config(place / "config.yaml")
        model = config.get("model", {})
        name = str(model.get("class_path", "run")).rpartition(".")[2]
        settings = {
            key: value for key, value in _flatten(model.get("init_args") or {}).items() if key not in DIMENSIONS
        }
        task = _result(place).get("task") or _environment(place / "config.yaml", config)
        # Where the configuration is lost: a run lies in a folder named for its environment, unless told otherwise.
        found.append((_read_run(place, task or place.resolve().parent.name, name), settings))
    return _name_methods(found, os.path.commonpath([folder.absolute() for folder in folders]) if folders else "")


def _read_run(folder: Path, task: str, method: str) -> RunData:
    result = _result(folder)
    curve: dict[str, list[float]] = {"env_steps": [], "return_mean": [], "seconds": []}
    if (folder / _CURVE).is_file():
        with _reading(folder / _CURVE), (folder / _CURVE).open(newline="") as file:
            for row in csv.DictReader(file):
                for name, values in curve.items():
                    values.append(float(row.get(name) or "nan"))
    columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in curve.items()}
    known = ~columns["return_mean"].isnan()
    with _reading(folder / _CURVE):
        if not (columns["env_steps"][known].diff() > 0.0).all():
            raise ValueError("env_steps do not ascend")
    stated = result.get("return_range")
    return RunData(
        folder=folder,
        task=task,
        method=method,
        curve={name: column[known] for name, column in columns.items()},
        score=result.get("metrics", {}).get(_SCORE),
        return_range=None if stated is None else (float(stated[0]), float(stated[1])),
        commit=result.get("commit"),
    )


def _result(folder: Path) -> dict[str, Any]:
    """What a run left at its end; empty before."""
    path = folder / RESULT
    if not path.is_file():
        return {}
    with _reading(path):
        result = json.loads(path.read_text())
        if not (isinstance(result, dict) and isinstance(result.get("metrics", {}), dict)):
            raise ValueError(f"expected metrics by name, got {result!r}")
        score, stated = result.get("metrics", {}).get(_SCORE), result.get("return_range")
        if not isinstance(score, float | int | None):
            raise ValueError(f"{_SCORE} must be a number, got {score!r}")
        if stated is not None and not (isinstance(stated, list) and len(stated) == 2):
            raise ValueError(f"return_range must be two numbers, got {stated!r}")
        return result


def _config(path: Path) -> dict[str, Any]:
    """A run's configuration; empty if there is none."""
    if not path.is_file():
        return {}
    with _reading(path):
        config = yaml.safe_load(path.read_text())
        for section in ("model", "data"):
            if not isinstance(config, dict) or not isinstance(config.get(section, {}), dict):
                raise ValueError(f"expected a section {section}, got {config!r}")
        return config


def _environment(path: Path, config: dict[str, Any]) -> str | None:
    """Label of the environment in a run's configuration; None if it names none."""
    stated = (config.get("data", {}).get("init_args") or {}).get("environment")
    if stated is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--environment", type=Environment)
    try:
        made: Any = parser.instantiate_classes(parser.parse_object({"environment": stated}))
        return made.environment.label
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{path}: {shorten(str(error))}") from error


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except (ValueError, csv.Error, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _name_methods(found: Sequence[tuple[RunData, dict[str, Any]]], root: str) -> list[RunData]:
    """Give models of one class that differ in their settings different names."""
    named = []
    for run, settings in found:
        alike = [(other, its) for other, its in found if other.method == run.method]
        keys = sorted({key for _, its in alike for key in {*its, *settings} if its.get(key) != settings.get(key)})
        if len(keys) <= _NAMED_SETTINGS:
            said = [f"{key}={settings.get(key)}" for key in keys]
        else:
            first = next(other for other, its in alike if its == settings)
            said = [f"as in {os.path.relpath(first.folder, root)}"]
        named.append(dataclasses.replace(run, method=" ".join([run.method, *said])))
    return named


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix.rstrip(".") if key == "class_path" and prefix else f"{prefix}{key}".replace("init_args.", "")
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat
