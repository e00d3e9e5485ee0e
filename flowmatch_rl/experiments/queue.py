"""The queue of a command's jobs: started, watched, and stopped when the command is interrupted."""

import abc
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
        head = f"  {self.job.name} ({self.end}), all of it in {self.job.folder / OUTPUT}"
        return "\n".join([head, *(f"    {line}" for line in self.last_lines())])

    @property
    def end(self) -> str:
        """How its process ended, in words."""
        return f"signal {-self.status}" if self.status < 0 else f"status {self.status}"

    def last_lines(self) -> list[str]:
        """The last lines that it printed, none of them empty."""
        output = self.job.folder / OUTPUT
        lines = output.read_text(errors="replace").splitlines() if output.is_file() else []
        return [line for line in lines if line.strip()][-_LAST_LINES:]


class JobSource(abc.ABC):
    """Which jobs a queue starts, and what becomes of them."""

    @abc.abstractmethod
    def begun(self) -> Sequence[Job]:
        """Jobs that an earlier command may have left running."""

    @abc.abstractmethod
    def next(self) -> Job | None:
        """The next job to start; None if there is none now, perhaps until another one has ended."""

    @abc.abstractmethod
    def superfluous(self, job: Job) -> str | None:
        """Why a running job is to be stopped before its end, in words; None to let it run.

        Args:
            job: The job.
        """

    @abc.abstractmethod
    def ended(self, job: Job, status: int) -> str:
        """Note that a job has ended, with or without a result, or that its result was there already.

        Args:
            job: The job.
            status: Exit status of its process, negative for a signal.

        Returns:
            What has become of it, in words.
        """

    @abc.abstractmethod
    def progress(self) -> str:
        """How much is done, such as ``3 of 8``."""


class PlannedJobs(JobSource):
    """Jobs that are known from the beginning, each run to its end.

    Args:
        jobs: All jobs of the comparison.

    Attributes:
        failures: Those that failed.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.failures: list[Failure] = []
        self._waiting = deque(job for job in jobs if not job.finished)
        self._ended = len(jobs) - len(self._waiting)
        if self._ended:
            print(f"{self._ended} of {len(jobs)} runs are finished already", flush=True)

    def begun(self) -> Sequence[Job]:
        """Jobs with a folder and no result."""
        return [job for job in self._waiting if job.folder.is_dir()]

    def next(self) -> Job | None:
        """The next one in their order."""
        return self._waiting.popleft() if self._waiting else None

    def superfluous(self, job: Job) -> str | None:
        """None: all of them are wanted."""
        return None

    def ended(self, job: Job, status: int) -> str:
        """Note that a job has ended."""
        if job.finished:
            self._ended += 1
            return outcome(job)
        self.failures.append(Failure(job, status))
        return f"failed with status {status}"

    def progress(self) -> str:
        """Number of jobs with a result."""
        return f"{self._ended} of {len(self.jobs)}"


@dataclass(eq=False)
class _Started:
    """A job that was started: when, from which checkpoint, when it was asked to stop, and why if it was superfluous."""

    job: Job
    execution: Execution
    began: float
    checkpoint: float
    asked: float | None = None
    reason: str | None = None


class JobQueue:
    """Jobs that run, so many at a time.

    Args:
        source: Where they come from.
        executor: What runs them.
        workers: Jobs at a time, at least 1.
        parent: MLflow run to put them under, or None.
    """

    def __init__(self, source: JobSource, executor: Executor, workers: int, parent: ParentRun | None) -> None:
        self._source, self._executor, self._workers, self._parent = source, executor, workers, parent
        self._cut_off: deque[Job] = deque()
        self._running: list[_Started] = []

    def work(self) -> int:
        """Run everything that is not finished.

        Returns:
            The signal that ended it early, 0 otherwise.

        Raises:
            RunError: If the folder of a job is held by a process that cannot be ended.
        """
        with _signals() as received:
            self._executor.end_leftovers(self._source.begun())
            try:
                while True:
                    while not received and len(self._running) < self._workers and (job := self._next()) is not None:
                        self._start(job)
                    if not self._running:
                        break
                    for started in list(self._running):
                        self._collect(started, stopping=bool(received))
                    for started in self._running:
                        self._watch(started, received)
                    time.sleep(POLL_S)
            finally:
                self._end_all()
        return received[0] if received else 0

    def _next(self) -> Job | None:
        return self._cut_off.popleft() if self._cut_off else self._source.next()

    def _start(self, job: Job) -> None:
        if job.finished:  # by the process that was left over, while it was being ended
            return self._say(job, f"is finished, {self._source.ended(job, 0)}")
        self._say(job, f"{'resumes' if job.last.is_file() else 'begins'}{job.remark and ': '}{job.remark}")
        command, environment = job.command(), {}
        if self._parent is not None:
            environment = self._parent.child_environment(job.name, dict(job.tags))
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
            minutes = (time.monotonic() - started.began) / 60.0
            self._say(job, f"is finished after {minutes:.1f} min, {self._source.ended(job, status)}")
        elif started.reason is not None:
            self._say(job, f"has ended, {self._source.ended(job, status)}")
        elif stopping:
            self._say(job, "is stopped")
        elif status == CUT_OFF and _changed(job.last) > started.checkpoint:
            self._say(job, "was cut off and waits to be resumed")
            self._cut_off.append(job)
        else:
            self._say(job, self._source.ended(job, status))

    def _watch(self, started: _Started, received: Sequence[int]) -> None:
        """Stop a job that is superfluous, or that the user or the system interrupts."""
        if received:
            self._stop(started, "is asked to save and stop; another signal ends it at once", at_once=len(received) > 1)
            return
        if started.reason is None:
            started.reason = self._source.superfluous(started.job)
        if started.reason is not None:
            self._stop(started, started.reason, at_once=False)

    def _stop(self, started: _Started, what: str, at_once: bool) -> None:
        """Ask a job to save and stop; end it if the user insists or its time is up."""
        if started.asked is None:
            self._say(started.job, what)
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
        print(f"[{self._source.progress()}] {job.name} {what}", flush=True)


def _changed(path: Path) -> float:
    """When a file was last written; 0 without one."""
    return path.stat().st_mtime if path.is_file() else 0.0


def outcome(job: Job) -> str:
    """The monitored number of a finished run in words: its return, or the first that its test measured.

    Args:
        job: A finished job.
    """
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
