"""Comparisons: every job of a plan is run, and a report is written about them."""

import contextlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.checks import RunError, check_range
from flowmatch_rl.experiments.executors import Executor, LocalExecutor
from flowmatch_rl.experiments.plan import Job, Plan, check_one_server, named_modules
from flowmatch_rl.experiments.queue import JobQueue, PlannedJobs
from flowmatch_rl.experiments.record import check_unchanged, lock_folder, write_record
from flowmatch_rl.experiments.report import NothingToReportError, write_report
from flowmatch_rl.trust import allow_imports


def compare(
    plan: Plan,
    output: Path,
    executor: Executor = LocalExecutor(),
    workers: int | None = None,
    check: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> None:
    """Train every method on every task with every seed, and write a report.

    Runs that are finished are skipped, runs that were interrupted resume from their last checkpoint.

    Args:
        plan: What to train.
        output: Folder of the comparison; a run lies in ``output/task/method/seed``.
        executor: Where the runs are made.
        workers: Runs at a time, at least 1; the executor's own number if None.
        check: Called with the jobs before the first one is started; raises if one of them cannot be run.

    Raises:
        UserError: If the plan is not what earlier runs in the folder were made with, or a job cannot be run.
        RunError: If another command works in the folder, or a run failed.
        KeyboardInterrupt: If the user interrupts it.
        SIGTERMException: If the system ends it.
    """
    check_range("[1, inf)", workers=workers)
    if plan.tracking:
        check_one_server(plan.contents())
    allow_imports(named_modules(plan.contents()))  # the report at the end describes the runs by their classes
    jobs, definition = plan.jobs(output), plan.definition()
    with lock_folder(output):
        known = check_unchanged(output, definition)
        check(jobs)
        parent = ParentRun(output.name, known["parent_run"] if known else None) if plan.tracking else None
        record = write_record(output, known, definition, jobs, parent and parent.run_id)
        planned = PlannedJobs(jobs)
        _work(planned, JobQueue(planned, executor, workers or executor.default_workers, parent), output, parent, record)


def list_commands(plan: Plan, output: Path) -> list[str]:
    """The command of each run, as a shell takes it; nothing is started or written.

    Args:
        plan: What to train.
        output: Folder of the comparison.

    Raises:
        UserError: If the plan is not what earlier runs in the folder were made with.
    """
    check_unchanged(output, plan.definition())
    return [job.describe() for job in plan.jobs(output)]


def _work(planned: PlannedJobs, queue: JobQueue, output: Path, parent: ParentRun | None, record: Path) -> None:
    """Run everything, close the parent, write the report, and raise if runs failed."""
    status: Any = "FAILED"
    try:
        stopped = queue.work()
        status = "KILLED" if stopped else "FAILED" if planned.failures else "FINISHED"
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
    if planned.failures:
        failed = f"{len(planned.failures)} of {len(planned.jobs)} runs failed; the same command tries them again"
        raise RunError("\n".join([failed, *(failure.describe() for failure in planned.failures)]))
