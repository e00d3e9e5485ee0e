"""The queue of a comparison's jobs: started, watched, and stopped when the command is interrupted."""

import contextlib
import json
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.experiments.executors import CUT_OFF, GRACE_S, POLL_S, Execution, Executor
from flowmatch_rl.experiments.plan import OUTPUT, Job, option
from flowmatch_rl.files import RESULT

_LAST_LINES = 5


@dataclass(frozen=True)
class Failure:
    """A job that ended without a result.

    Attributes:
        job: The job.
        status: Exit status of its process, negative for a signal.
    """

    job: Job
    status: int

    def describe(self) -> str:
        """Which job, how it ended, and the last lines that it printed."""
        output = self.job.folder / OUTPUT
        lines = output.read_text(errors="replace").splitlines() if output.is_file() else []
        last = [line for line in lines if line.strip()][-_LAST_LINES:]
        end = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        return "\n".join([f"  {self.job.name} ({end}), all of it in {output}", *(f"    {line}" for line in last)])


@dataclass(eq=False)
class _Started:
    """A job that was started: when, from which checkpoint, and when it was asked to stop."""

    job: Job
    execution: Execution
    began: float
    checkpoint: float
    asked: float | None = None


class JobQueue:
    """Jobs waiting to be started, those that run, and those that failed.

    Args:
        jobs: All jobs of the comparison.
        executor: What runs them.
        workers: Jobs at a time, at least 1.
        parent: MLflow run to put them under, or None.
    """

    def __init__(self, jobs: Sequence[Job], executor: Executor, workers: int, parent: ParentRun | None) -> None:
        self.jobs = jobs
        self.failures: list[Failure] = []
        self._executor, self._workers, self._parent = executor, workers, parent
        self._waiting = deque(job for job in jobs if not job.finished)
        self._ended = len(jobs) - len(self._waiting)
        self._running: list[_Started] = []

    def work(self) -> int:
        """Run everything that is not finished.

        Returns:
            The signal that ended it early, 0 otherwise.

        Raises:
            RunError: If the folder of a job is held by a process that cannot be ended.
        """
        if self._ended:
            print(f"{self._ended} of {len(self.jobs)} runs are finished already", flush=True)
        with _signals() as received:
            self._executor.end_leftovers([job for job in self._waiting if job.folder.is_dir()])
            try:
                while self._running or (self._waiting and not received):
                    while self._waiting and len(self._running) < self._workers and not received:
                        self._start(self._waiting.popleft())
                    for started in list(self._running):
                        self._collect(started, stopping=bool(received))
                    for started in self._running if received else ():
                        self._stop(started, at_once=len(received) > 1)
                    time.sleep(POLL_S)
            finally:
                self._end_all()
        return received[0] if received else 0

    def _start(self, job: Job) -> None:
        if job.finished:  # by the process that was left over, while it was being ended
            self._ended += 1
            return self._say(job, f"is finished, {_outcome(job)}")
        self._say(job, "resumes" if job.last.is_file() else "begins")
        command, environment = job.command(), {}
        if self._parent is not None:
            environment = self._parent.child_environment(job.name)
            if child := self._parent.child_of(job.folder):
                command.append(option("trainer.logger.init_args.run_id", child))
        execution = self._executor.start(job, command, environment)
        self._running.append(_Started(job, execution, time.monotonic(), _changed(job.last)))
        return None

    def _collect(self, started: _Started, stopping: bool) -> None:
        status = started.execution.poll()
        if status is None:
            return
        self._running.remove(started)
        job = started.job
        if job.finished:
            self._ended += 1
            minutes = (time.monotonic() - started.began) / 60.0
            self._say(job, f"is finished after {minutes:.1f} min, {_outcome(job)}")
        elif stopping:
            self._say(job, "is stopped")
        elif status == CUT_OFF and _changed(job.last) > started.checkpoint:
            self._say(job, "was cut off and waits to be resumed")
            self._waiting.append(job)
        else:
            self.failures.append(Failure(job, status))
            self._say(job, f"failed with status {status}")

    def _stop(self, started: _Started, at_once: bool) -> None:
        """Ask a job to save and stop; end it if the user insists or its time is up."""
        if started.asked is None:
            self._say(started.job, "is asked to save and stop; another signal ends it at once")
            started.asked = time.monotonic()
            started.execution.stop()
        elif at_once or time.monotonic() - started.asked > GRACE_S:
            started.execution.kill()

    def _end_all(self) -> None:
        """Leave no job running, whatever went wrong here."""
        for started in self._running:
            if started.asked is None:
                started.execution.stop()
        deadline = time.monotonic() + GRACE_S
        while any(started.execution.poll() is None for started in self._running) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        for started in self._running:
            started.execution.kill()
        self._running.clear()

    def _say(self, job: Job, what: str) -> None:
        print(f"[{self._ended} of {len(self.jobs)}] {job.name} {what}", flush=True)


def _changed(path: Path) -> float:
    """When a file was last written; 0 without one."""
    return path.stat().st_mtime if path.is_file() else 0.0


def _outcome(job: Job) -> str:
    """The monitored number of a finished run: its return, or the first that its test measured."""
    metrics = json.loads((job.folder / RESULT).read_text())["metrics"]
    if "test/return_mean" in metrics:
        return f"return {metrics['test/return_mean']:.1f}"
    return next((f"{name.removeprefix('test/')} {value:.4g}" for name, value in metrics.items()), "nothing measured")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Gather interruptions by the user and the system in a list instead of acting on them."""
    received: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda caught, _: received.append(caught))
    try:
        yield received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
