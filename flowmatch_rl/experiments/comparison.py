"""The command ``compare``: methods by tasks by seeds, each a run in a process of its own."""

import contextlib
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

import flowmatch_rl.experiments.comparison_record as records
from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.checks import RunError
from flowmatch_rl.experiments.comparison_runs import PlannedRun, RunQueue, option
from flowmatch_rl.experiments.definitions import Options, check_names, check_seeds, only_one, read_layer
from flowmatch_rl.experiments.report import NothingToReportError, write_report

_OWN_OPTIONS = ("seed_everything", "trainer.default_root_dir", "ckpt_path")


@dataclass(frozen=True)
class Method:
    """A method: what is laid over a task.

    Args:
        config: Configuration files, in the order in which they are laid over each other.
        options: Further options of ``fit``, by name.
    """

    config: list[str] = field(default_factory=list)
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task: what a method is laid over.

    Args:
        config: Configuration files, in the order in which they are laid over each other.
        options: Further options of ``fit``, by name.
        return_range: Returns that count as 0 and as 1 where several tasks are brought to one scale, such as those of a
            random and of a good policy; what the environment states if None.
    """

    config: list[str]
    options: Options = field(default_factory=dict)
    return_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.return_range is not None and not self.return_range[0] < self.return_range[1]:
            raise ValueError(f"return_range must ascend, got {self.return_range}")


def compare(
    output: Path,
    tasks: dict[str, Task],
    methods: dict[str, Method],
    seeds: Sequence[int],
    options: Options,
    tracking: bool,
    workers: int,
    dry_run: bool,
) -> None:
    """Train every method on every task with every seed, and write a report.

    Each run is a process ``flowmatch-rl fit`` in the folder ``output/task/method/seed``. Runs that are finished are
    skipped, runs that were cut off go on from their last checkpoint.

    Args:
        output: Folder of the comparison.
        tasks: Tasks by name.
        methods: Methods by name.
        seeds: Seeds.
        options: Options of all runs; those of a task, and then of a method, come after them.
        tracking: Whether the runs are tracked in MLflow, under a common parent.
        workers: Processes at a time.
        dry_run: Whether to print the commands only.

    Raises:
        ValueError: If the definition does not fit, or is not what earlier runs in the folder were made with.
        RunError: If another command works in the folder, or a run failed.
        KeyboardInterrupt: If the user interrupts it.
        SIGTERMException: If the system ends it.
    """
    _check(tasks, methods, seeds, options, workers)
    if tracking:
        _check_one_server(tasks, methods, options)
    runs = plan(output, tasks, methods, seeds, options, tracking)
    definition = records.define(tasks, methods, options)
    if dry_run:
        records.check_unchanged(output, definition)
        for run in runs:
            print(run.describe())
        return
    output.mkdir(parents=True, exist_ok=True)
    with only_one(output):
        records.check_unchanged(output, definition)
        known = records.read(output)
        parent = ParentRun(output.name, known["parent_run"] if known else None) if tracking else None
        places = [(run.task, run.method, run.seed) for run in runs]
        path = records.write(output, definition, places, parent and parent.run_id)
        _work(RunQueue(runs, workers, parent), output, parent, path)


def plan(
    output: Path,
    tasks: dict[str, Task],
    methods: dict[str, Method],
    seeds: Sequence[int],
    options: Options,
    tracking: bool,
) -> list[PlannedRun]:
    """The runs of a comparison, one seed of everything before the next.

    Args:
        output: Folder of the comparison.
        tasks: Tasks by name.
        methods: Methods by name.
        seeds: Seeds.
        options: Options of all runs.
        tracking: Whether the runs are tracked.
    """
    runs = []
    for seed in seeds:
        for task_name, task in tasks.items():
            for name, method in methods.items():
                given = {"trainer.enable_progress_bar": False} | ({} if tracking else {"trainer.logger": False})
                # A dictionary keeps the place at which a key first came; options must keep the order of their layers.
                layers = [given, options, task.options, method.options]
                folder = output / task_name / name / str(seed)
                arguments = [
                    *(f"-c={path}" for path in (*task.config, *method.config)),
                    *(option(key, value) for layer in layers for key, value in layer.items()),
                    option("seed_everything", seed),
                    option("trainer.default_root_dir", str(folder)),
                ]
                runs.append(PlannedRun(task_name, name, seed, folder, tuple(arguments)))
    return runs


def _work(queue: RunQueue, output: Path, parent: ParentRun | None, record: Path) -> None:
    """Run everything, close the parent, write the report, and raise if runs failed."""
    status: Any = "FAILED"
    try:
        stopped = queue.work()
        status = "KILLED" if stopped else "FAILED" if queue.failures else "FINISHED"
        if stopped:
            raise KeyboardInterrupt if stopped == signal.SIGINT else SIGTERMException
        files = [record]
        with contextlib.suppress(NothingToReportError):
            files += write_report([output], output)
            print("\n" + "\n".join(f"{'report':<12} {path}" for path in files[1:]))
        for path in files if parent is not None else ():
            parent.publish(path)  # pyright: ignore[reportOptionalMemberAccess]
    finally:
        if parent is not None:
            parent.close(status)
    if queue.failures:
        failed = f"{len(queue.failures)} of {len(queue.runs)} runs failed; the same command tries them again"
        raise RunError("\n".join([failed, *(failure.describe() for failure in queue.failures)]))


def _check(
    tasks: dict[str, Task], methods: dict[str, Method], seeds: Sequence[int], options: Options, workers: int
) -> None:
    for kind, entries in {"tasks": tasks, "methods": methods}.items():
        check_names(kind, entries)
        for name, entry in entries.items():
            for path in entry.config:
                read_layer(f"{kind}.{name}.config", path)
            _check_options(f"{kind}.{name}.options", entry.options)
    _check_options("options", options)
    check_seeds(seeds)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _check_options(where: str, options: Options) -> None:
    for name in options:
        if not isinstance(name, str):
            raise ValueError(f"{where}: a name must be a word, got {name!r}; put it in quotes")
        if name.lstrip("-") in _OWN_OPTIONS:
            raise ValueError(f"{where} must not set {name}: compare sets it for each run")


def _check_one_server(tasks: dict[str, Task], methods: dict[str, Method], options: Options) -> None:
    """Refuse an address of MLflow for runs, which their parent would not share."""
    settings: list[tuple[str, dict[str, Any]]] = [("options", options)]
    for kind, entries in {"tasks": tasks, "methods": methods}.items():
        for name, entry in entries.items():
            settings.append((f"{kind}.{name}.options", entry.options))
            settings += [(f"{kind}.{name}.config", read_layer(kind, path)) for path in entry.config]
    for where, content in settings:
        for name, value in records.flatten(content).items():
            key = name.lstrip("-")
            if key.startswith("trainer.logger.") and key.endswith(".tracking_uri") and value is not None:
                raise ValueError(
                    f"{where} must not set {key}: the parent of the runs would be elsewhere; set the environment "
                    "variable MLFLOW_TRACKING_URI, which holds for all"
                )
