"""The runs that a report is about, read from their folders."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from flowmatch_rl import envs
from flowmatch_rl.checks import UserError
from flowmatch_rl.configuration import shorten
from flowmatch_rl.experiments.curves import CURVE_PATH, STEPS, read_curve, reading
from flowmatch_rl.experiments.naming import LooseRun, name_runs
from flowmatch_rl.experiments.record import begun_runs, first_difference, read_record
from flowmatch_rl.files import ACTIONS, RESULT
from flowmatch_rl.testbeds import Bandit
from flowmatch_rl.trust import check_object, in_file, reading_file

RETURN, SUCCESS = "test/return_mean", "test/success_rate"
"""Metrics that may be the score of a run."""

_RETURN, _SECONDS = "return_mean", "seconds"


@dataclass(frozen=True)
class RunCurve:
    """The evaluations of a run during its training, P of them, at least one.

    Attributes:
        counts: What its steps are: ``env_steps``, or ``gradient_steps`` of a run that learns from a data set.
        steps: Steps so far, ascending, shape (P,), float64.
        returns: Mean returns, shape (P,), float64.
        seconds: Wall time of the training so far, NaN where it is not known, shape (P,), float64.
    """

    counts: str
    steps: Tensor
    returns: Tensor
    seconds: Tensor

    @property
    def mean_return(self) -> float:
        """Area under the curve by steps, from the first evaluation to the last, divided by these steps."""
        if len(self.steps) == 1:
            return float(self.returns[0])
        return float(torch.trapezoid(self.returns, self.steps) / (self.steps[-1] - self.steps[0]))


@dataclass(frozen=True)
class Run:
    """What a run has left so far.

    Attributes:
        folder: Its folder.
        task: What it was trained on.
        method: What was trained.
        curve: Its evaluations during training; None before the first.
        metrics: What its final test measured, by name; None if it has not ended.
        return_range: Returns that the environment counts as 0 and as 1; None if it states none or is not known yet.
        commit: Commit of the code that ended it; None if it has not ended.
        arithmetic: Precision and device that it ended with; None if it has not ended, or not with this version.
    """

    folder: Path
    task: str
    method: str
    curve: RunCurve | None
    metrics: dict[str, float] | None
    return_range: tuple[float, float] | None
    commit: str | None
    arithmetic: str | None

    def measured(self, metric: str) -> float | None:
        """A metric of its final test; None if it has not ended or measured none."""
        return (self.metrics or {}).get(metric)

    @property
    def on_bandit(self) -> bool:
        """Whether it has left samples of a policy for a bandit."""
        return (self.folder / ACTIONS).is_file()

    def actions(self) -> Tensor:
        """Samples of its policy in [-1, 1], shape (N, A)."""
        with reading(self.folder / ACTIONS):
            return torch.from_numpy(pd.read_csv(self.folder / ACTIONS).to_numpy(float, copy=True))

    def bandit(self) -> tuple[Bandit, float]:
        """The bandit that it was trained on, and the temperature."""
        path = self.folder / "config.yaml"
        config = _config(path)
        model, data = (config.get(section, {}).get("init_args") or {} for section in ("model", "data"))
        return _instantiate(path, Bandit, data.get("bandit")), float(model.get("temperature", 1.0))


@dataclass(frozen=True)
class Score:
    """What counts as the result of a run on a task.

    Attributes:
        metric: Metric of the final test, ``RETURN`` or ``SUCCESS``.
        range: Values that count as 0 and as 1 over several tasks; None where nobody states them.
    """

    metric: str
    range: tuple[float, float] | None


@dataclass(frozen=True)
class Study:
    """The runs of a report.

    Attributes:
        tasks: Names of the tasks, in order.
        methods: Names of the methods, in order.
        runs: Runs that have begun.
        planned: How many runs there are to be of each task and method.
        scores: What counts on each task: returns where the comparison states their range, else the success rate where
            all runs that ended measured one, else returns, in the range that the environment states.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    runs: tuple[Run, ...]
    planned: dict[tuple[str, str], int]
    scores: dict[str, Score]

    @property
    def num_ended(self) -> int:
        """Runs that ended."""
        return sum(run.metrics is not None for run in self.runs)

    def of(self, task: str, method: str) -> list[Run]:
        """The runs of a method on a task."""
        return [run for run in self.runs if (run.task, run.method) == (task, method)]

    def steps(self, task: str) -> tuple[str, ...]:
        """What the curves of the runs on a task count, see ``RunCurve``: one thing, or several, or nothing yet."""
        known = {run.curve.counts for run in self.runs if run.task == task and run.curve is not None}
        return tuple(counts for counts in STEPS if counts in known)

    def split(self) -> tuple["Study", "Study"]:
        """Studies of the tasks that have returns, and of those that are bandits."""
        bandits = {run.task for run in self.runs if run.on_bandit}
        return self._restrict(set(self.tasks) - bandits), self._restrict(bandits)

    def _restrict(self, tasks: Collection[str]) -> "Study":
        planned = {place: number for place, number in self.planned.items() if place[0] in tasks}
        return Study(
            tuple(task for task in self.tasks if task in tasks),
            tuple(method for method in self.methods if method in {name for _, name in planned}),
            tuple(run for run in self.runs if run.task in tasks),
            planned,
            self.scores,
        )

    def metrics(self) -> pd.DataFrame:
        """What the tests of ended runs measured: a row for each run, a column for each metric."""
        rows = [
            {"task": run.task, "method": run.method, "run": run.folder.name}
            | {name.removeprefix("test/"): value for name, value in run.metrics.items()}
            for run in self.runs
            if run.metrics is not None
        ]
        return pd.DataFrame(rows, columns=None if rows else ["task", "method", "run"])


def read_study(folders: Sequence[Path]) -> Study:
    """Read the runs in some folders.

    In the folder of a comparison, tasks and methods are those of its record. Elsewhere a run is every folder with a
    learning curve of returns, or with samples for a bandit. Its task is its environment or bandit, with the data set
    that it learned from, its method the class of its model with those settings in which models of that class differ, in
    all such folders together, and those of the updates on the data set that differ on the task. Classes of other
    packages are imported only if they are allowed.

    Args:
        folders: Folders of comparisons, of runs, or with runs somewhere below.

    Raises:
        UntrustedNameError: If a run's environment is of a class that may not be imported.
        UserError: If a folder does not exist, its files are damaged, or two comparisons mean different things by one
            name.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    records = {folder: record for folder in folders if (record := read_record(folder)) is not None}
    _check_same_names(records)
    runs: list[Run] = []
    places: list[tuple[str, str]] = []
    ranges: dict[str, tuple[float, float]] = {}
    for folder, record in records.items():
        listed = list(dict.fromkeys([*record["runs"], *begun_runs(folder)]))
        found = [_read_run(folder / task / method / str(seed), task, method) for task, method, seed in listed]
        runs += [run for run in found if run.folder.is_dir()]
        places += [(task, method) for task, method, _ in listed]
        stated = {name: task["return_range"] for name, task in record["tasks"].items()}
        ranges |= {name: (float(given[0]), float(given[1])) for name, given in stated.items() if given}
    loose = _runs_below([folder for folder in folders if folder not in records])
    runs += loose
    places += [(run.task, run.method) for run in loose]
    tasks = tuple(dict.fromkeys(task for task, _ in places))
    scores = {task: _score([run for run in runs if run.task == task], ranges.get(task)) for task in tasks}
    methods = tuple(dict.fromkeys(method for _, method in places))
    return Study(tasks, methods, tuple(runs), dict(Counter(places)), scores)


def _score(runs: Sequence[Run], stated: tuple[float, float] | None) -> Score:
    """What counts on a task, by its runs and the range of returns that the comparison states."""
    ended = [run for run in runs if run.metrics is not None]
    if stated is None and ended and all(run.measured(SUCCESS) is not None for run in ended):
        return Score(SUCCESS, (0.0, 1.0))
    return Score(RETURN, stated or next((run.return_range for run in runs if run.return_range), None))


def _check_same_names(records: Mapping[Path, dict[str, Any]]) -> None:
    """Refuse comparisons that share a task or a method, but not what it is, or the options of all runs."""
    for (folder, record), (other, its) in itertools.combinations(records.items(), 2):
        shared = [(kind, name) for kind in ("tasks", "methods") for name in record[kind] if name in its[kind]]
        sides = [(f"{kind}.{name}", record[kind][name], its[kind][name]) for kind, name in shared]
        for where, first, second in [*sides, ("options", record["options"], its["options"])] if shared else ():
            if (difference := first_difference(first, second)) is not None:
                key, here, there = difference
                raise UserError(
                    f"{folder} and {other} cannot be put together: {key} in {where} is {here} in one "
                    f"and {there} in the other"
                )


def _runs_below(folders: Sequence[Path]) -> list[Run]:
    """Runs with a curve of returns, or with samples for a bandit."""
    found: list[LooseRun] = []
    places = [(folder, table.parents[1]) for folder in folders for table in folder.rglob(CURVE_PATH)]
    places += [(folder, table.parent) for folder in folders for table in folder.rglob(ACTIONS)]
    # MLflow keeps a copy of each tracked run's figures in a folder of this name.
    kept = {place.resolve(): place for folder, place in places if place.name != "artifacts" or place == folder}
    for place in sorted(kept.values()):  # once, also where one folder holds another
        if _curve(place) is None and not (place / ACTIONS).is_file():
            continue  # a generative model's
        config = _config(place / "config.yaml")
        found.append(LooseRun(place, *_task(place, config), config))
    root = os.path.commonpath([folder.absolute() for folder in folders]) if folders else ""
    return [_read_run(run.folder, *names) for run, names in zip(found, name_runs(found, root), strict=True)]


def _read_run(folder: Path, task: str, method: str) -> Run:
    result = _result(folder)
    stated = result.get("return_range")
    return Run(
        folder=folder,
        task=task,
        method=method,
        curve=_curve(folder),
        metrics=result.get("metrics"),
        return_range=None if stated is None else (float(stated[0]), float(stated[1])),
        commit=result.get("commit"),
        arithmetic=result.get("arithmetic"),
    )


def _curve(folder: Path) -> RunCurve | None:
    """A run's evaluations; None if it has no returns, as a generative model, or none yet."""
    found = read_curve(folder, _RETURN, [_SECONDS])
    if found is None:
        return None
    counts, table = found
    return RunCurve(counts, *torch.tensor(table.to_numpy(), dtype=torch.float64).T.unbind())


def _result(folder: Path) -> dict[str, Any]:
    """What a run left at its end; empty before."""
    path = folder / RESULT
    if not path.is_file():
        return {}
    with reading(path):
        result = json.loads(path.read_text())
        if not (isinstance(result, dict) and isinstance(result.get("metrics", {}), dict)):
            raise ValueError(f"expected metrics by name, got {result!r}")
        for name, value in result.get("metrics", {}).items():
            if not isinstance(value, float | int):
                raise ValueError(f"{name} must be a number, got {value!r}")
        stated = result.get("return_range")
        if stated is not None and not (
            isinstance(stated, list) and len(stated) == 2 and all(isinstance(value, float | int) for value in stated)
        ):
            raise ValueError(f"return_range must be two numbers, got {stated!r}")
        return result


def _config(path: Path) -> dict[str, Any]:
    """A run's configuration; empty if there is none."""
    if not path.is_file():
        return {}
    with reading(path):
        config = yaml.safe_load(path.read_text())
        for section in ("model", "data"):
            if not isinstance(config, dict) or not isinstance(config.get(section, {}), dict):
                raise ValueError(f"expected a section {section}, got {config!r}")
        return config


def _task(folder: Path, config: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """What a run was trained on: its environment in words, and folders that lead to its data set, if there is one."""
    data = config.get("data", {}).get("init_args") or {}
    known = _result(folder).get("task")
    if (known is None or "path" in data) and data.get("environment") is not None:
        environment = _instantiate(folder / "config.yaml", envs.Environment, data["environment"]).label
        return environment, Path(data["path"]).parts if "path" in data else ()
    # Where the configuration is lost: a run lies in a folder named for its environment by default.
    return known or folder.resolve().parent.name, ()


def _instantiate(path: Path, kind: type, stated: Any) -> Any:
    """The object that a run's configuration describes: it may be another's run, whose classes are not imported."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=kind)
    try:
        with in_file(path), reading_file():
            check_object(kind, stated)
            made: Any = parser.instantiate_classes(parser.parse_object({"made": stated}))
        return made.made
    except UserError:
        raise
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{path}: {shorten(str(error))}") from error
