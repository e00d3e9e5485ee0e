"""Sweeps: trials are made until there are enough, and what they have found is written."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.experiments.executors import Executor, LocalExecutor
from flowmatch_rl.experiments.plan import check_one_server, named_modules
from flowmatch_rl.experiments.queue import JobQueue
from flowmatch_rl.experiments.record import first_difference, lock_folder
from flowmatch_rl.experiments.sweeps.plan import Sweep
from flowmatch_rl.experiments.sweeps.report import Findings, Merge
from flowmatch_rl.experiments.sweeps.space import Point, number
from flowmatch_rl.experiments.sweeps.trials import FAILED, RUNNING, STUDY, Trials, reason_of
from flowmatch_rl.experiments.sweeps.work import Objective, TrialJobs
from flowmatch_rl.files import write_json
from flowmatch_rl.trust import allow_imports

RECORD = "sweep.json"
"""What a sweep was made with, in its folder."""

Check = Callable[[Sequence[str]], tuple[str, str] | None]
"""Raises if a run with these arguments cannot be made; else the metric that its model monitors, and its direction."""


def run_sweep(
    sweep: Sweep,
    output: Path,
    check: Check,
    merge: Merge,
    executor: Executor = LocalExecutor(),
    workers: int = 1,
) -> None:
    """Make the trials of a sweep, and write what they have found.

    Trials that have ended stay, those that were interrupted resume from their last checkpoint.

    Args:
        sweep: What to search.
        output: Folder of the sweep; a run lies in ``output/trials/number/seed``.
        check: Raises if a run cannot be made.
        merge: Lays overlays over each other.
        executor: Where the runs are made.
        workers: Runs at a time, at least 1. With one, the same sweep makes the same trials.

    Raises:
        UserError: If the sweep is not what trials in the folder were made with, or a run cannot be made.
        RunError: If another command works in the folder, or no trial has a value.
        KeyboardInterrupt: If the user interrupts it.
        SIGTERMException: If the system ends it.
    """
    check_range("[1, inf)", workers=workers)
    if sweep.tracking:
        check_one_server(sweep.contents())
    allow_imports(named_modules(sweep.contents()))
    with lock_folder(output):
        known = _check_unchanged(sweep, output)
        objective = choose_objective(sweep, check_space(sweep, output, check))
        trials = Trials(output, objective.direction, sweep)
        parent = ParentRun(output.name, known["parent_run"] if known else None) if sweep.tracking else None
        record = {"definition": sweep.definition(), "parent_run": parent and parent.run_id}
        write_json(output / RECORD, record)
        if sweep.num_trials < sweep.trials:
            print(f"the grid has {sweep.num_trials} points, fewer than trials {sweep.trials}", flush=True)
        queue = JobQueue(TrialJobs(sweep, output, trials, objective, parent), executor, workers, parent)
        _work(queue, Findings(sweep, output, trials, objective, merge), parent, output / RECORD)


def check_space(sweep: Sweep, output: Path, check: Check) -> list[tuple[str, str] | None]:
    """Make model and data with each value of each key, so that one which does not fit is named before any trial.

    Args:
        sweep: The sweep.
        output: Folder of the sweep.
        check: Raises if a run cannot be made.

    Returns:
        What the models monitor.

    Raises:
        UserError: If a run cannot be made.
    """
    monitored = []
    for key, point in sweep.probes():
        try:
            monitored.append(check(sweep.jobs(output, 0, point)[0].arguments))
        except UserError as error:
            if key is None:
                key = _first_that_fails(sweep, output, check, point)
            where = "base and options" if key is None else f"space.{key}, at {number(point[key])}"
            raise UserError(f"{where}: {error}") from error
    return monitored


def choose_objective(sweep: Sweep, monitored: Sequence[tuple[str, str] | None]) -> Objective:
    """What trials are compared by: what the sweep states, or what all models of the space monitor.

    Args:
        sweep: The sweep.
        monitored: What the models monitor.

    Raises:
        UserError: If neither is.
    """
    if sweep.metric is not None and sweep.direction is not None:
        name = sweep.metric.removeprefix("test/").removeprefix("val/")
        return Objective(f"test/{name}", sweep.direction, sweep.prune_by)
    if len(set(monitored)) != 1 or monitored[0] is None:
        names = ", ".join(sorted({"none" if it is None else it[0] for it in monitored}))
        raise UserError(f"metric and direction are needed: the models of this space have no one metric, but {names}")
    metric, direction = monitored[0]
    return Objective(
        f"test/{metric.removeprefix('val/')}",
        sweep.direction or ("max" if direction == "max" else "min"),
        sweep.prune_by,
    )


def _first_that_fails(sweep: Sweep, output: Path, check: Check, point: Point) -> str | None:
    """The first key of the space whose value cannot be laid over the configuration; None if this fails by itself."""
    for key, part in _growing(point):
        try:
            check(sweep.jobs(output, 0, part)[0].arguments)
        except UserError:
            return key
    return None


def _growing(point: Point) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """The first values of a point, none of them to all, with the key of the last one."""
    part: dict[str, Any] = {}
    yield None, dict(part)
    for key, value in point.items():
        part[key] = value
        yield key, dict(part)


def _check_unchanged(sweep: Sweep, output: Path) -> dict[str, Any] | None:
    """The record of a folder; refuses a sweep that is not what its trials were made with. More trials are fine."""
    path = output / RECORD
    if not path.is_file():
        return None
    try:
        known = json.loads(path.read_text())
        before, _ = dict(known["definition"]), known["parent_run"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the record of a sweep") from error
    if not (output / STUDY).is_file():
        return known
    states = {trial.state for trial in Trials(output, "max", sweep).all()}
    # What prunes trials may be mended as long as none has ended.
    free = ("pruner", "prune_by") if states <= {RUNNING} else ()
    given = json.loads(json.dumps(sweep.definition()))
    sides = [{key: value for key, value in side.items() if key not in free} for side in (before, given)]
    difference = first_difference(*sides) if states else None
    if difference is not None:
        key, there, here = difference
        raise UserError(
            f"the sweep is not what trials in {output} were made with: {key} was {there}, is {here}; "
            "take another folder"
        )
    return known


def _work(queue: JobQueue, findings: Findings, parent: ParentRun | None, record: Path) -> None:
    """Make the trials, close the parent, and write what they have found."""
    status: Any = "FAILED"
    try:
        stopped = queue.work()
        if stopped:
            status = "KILLED"
            raise KeyboardInterrupt if stopped == signal.SIGINT else SIGTERMException
        files = findings.write()
        lines = [*findings.lines(), *(f"{'report':<12} {path}" for path in files)]
        print("\n" + "\n".join(lines), flush=True)
        for path in [record, *files] if parent is not None else ():
            parent.publish(path)  # pyright: ignore[reportOptionalMemberAccess]
        if findings.trials.best() is None:
            failed = findings.trials.in_state(FAILED)
            reason = f"; trial {failed[-1].number} failed: {reason_of(failed[-1])}" if failed else ""
            raise RunError(f"none of {len(findings.trials)} trials has a value{reason}")
        status = "FINISHED"
    finally:
        if parent is not None:
            parent.close(status)
