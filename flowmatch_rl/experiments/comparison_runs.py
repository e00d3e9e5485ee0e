"""The processes of a comparison: started, watched, stopped, and never two on one run."""

import contextlib
import fcntl
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmatch_rl.callbacks import RESULT
from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.checks import RunError

OUTPUT = "output.log"
"""What a run printed, in its folder."""

_PROGRAM = (sys.executable, "-m", "flowmatch_rl")
_LOCK = ".lock"
_LAST = "checkpoints/last.ckpt"
_POLL_S = 0.1
_GRACE_S = 120.0
"""Seconds that a run has, once it is told to stop, for the update or evaluation at hand and a checkpoint."""
_LAST_LINES = 5


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        seed: Seed.
        folder: Its folder.
        arguments: Arguments of ``fit``.
    """

    task: str
    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Task, method and seed."""
        return f"{self.task}/{self.method}/{self.seed}"

    @property
    def last(self) -> Path:
        """Its last checkpoint."""
        return self.folder / _LAST

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end and tested: the result is written last, whole or not at all."""
        return (self.folder / RESULT).is_file()

    def command(self) -> list[str]:
        """The process that makes the run, or goes on with it."""
        resume = [option("ckpt_path", str(self.last))] if self.last.is_file() else []
        return [*_PROGRAM, "fit", *self.arguments, *resume]

    def describe(self) -> str:
        """The command as a shell takes it, behind a comment sign if there is nothing to do."""
        return ("# finished: " if self.finished else "") + shlex.join(self.command())


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result.

    Attributes:
        run: The run.
        status: Exit status of its process, negative for a signal.
    """

    run: PlannedRun
    status: int

    def describe(self) -> str:
        """Which run, how it ended, and the last lines that it printed."""
        output = self.run.folder / OUTPUT
        lines = output.read_text(errors="replace").splitlines() if output.is_file() else []
        last = [line for line in lines if line.strip()][-_LAST_LINES:]
        end = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
        return "\n".join([f"  {self.run.name} ({end}), all of it in {output}", *(f"    {line}" for line in last)])


def option(name: str, value: Any) -> str:
    """An option of the command line.

    Args:
        name: Its name, dots between levels.
        value: A word, or anything that YAML can say.
    """
    return f"--{name.lstrip('-')}={value if isinstance(value, str) else json.dumps(value)}"


class RunQueue:
    """Runs waiting for a process, those that have one, and those that failed.

    Args:
        runs: All runs of the comparison.
        workers: Processes at a time, at least 1.
        parent: MLflow run to put them under, or None.
    """

    def __init__(self, runs: Sequence[PlannedRun], workers: int, parent: ParentRun | None) -> None:
        self.runs = runs
        self.failures: list[Failure] = []
        self._workers = workers
        self._parent = parent
        self._waiting = deque(run for run in runs if not run.finished)
        self._ended = len(runs) - len(self._waiting)
        self._working: list[_Process] = []

    def work(self) -> int:
        """Run everything that is not finished.

        Returns:
            The signal that ended it early, 0 otherwise.

        Raises:
            RunError: If a run is held by a process that cannot be ended.
        """
        if self._ended:
            print(f"{self._ended} of {len(self.runs)} runs are finished already", flush=True)
        with _signals() as received:
            _take_over([run for run in self._waiting if run.folder.is_dir()])
            try:
                while self._working or (self._waiting and not received):
                    self._fill(stopping=bool(received))
                    self._collect(stopping=bool(received))
                    self._pass_on(received)
                    time.sleep(_POLL_S)
            finally:
                self._end_all()
        return received[0] if received else 0

    def _fill(self, stopping: bool) -> None:
        while self._waiting and len(self._working) < self._workers and not stopping:
            run = self._waiting.popleft()
            if run.finished:  # by the process that was left over, while it was being ended
                self._ended += 1
                self._say(run, f"is finished, return {_final_return(run)}")
                continue
            self._say(run, "goes on" if run.last.is_file() else "begins")
            self._working.append(_Process(run, self._parent))

    def _collect(self, stopping: bool) -> None:
        for process in [process for process in self._working if process.ended]:
            self._working.remove(process)
            run, status = process.run, process.close()
            if run.finished:
                self._ended += 1
                self._say(run, f"is finished after {process.minutes:.1f} min, return {_final_return(run)}")
            elif stopping:
                self._say(run, "is stopped")
            else:
                self.failures.append(Failure(run, status))
                self._say(run, f"failed with status {status}")

    def _pass_on(self, received: list[int]) -> None:
        """Tell processes to save and stop at the first signal, and end them at the second or when time is up."""
        for process in self._working if received else ():
            if process.stopping_s is None:
                self._say(process.run, "is told to save and stop; another signal ends it at once")
                process.stop()
            elif len(received) > 1 or process.stopping_s > _GRACE_S:
                process.kill()

    def _end_all(self) -> None:
        """Leave no process behind, whatever went wrong here."""
        for process in self._working:
            process.stop()
        deadline = time.monotonic() + _GRACE_S
        while any(not process.ended for process in self._working) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        for process in self._working:
            if not process.ended:
                process.kill()
            process.close()
        self._working.clear()

    def _say(self, run: PlannedRun, what: str) -> None:
        print(f"[{self._ended} of {len(self.runs)}] {run.name} {what}", flush=True)


class _Process:
    """The process of one run, which holds the lock of the run's folder as long as it lives."""

    def __init__(self, run: PlannedRun, parent: ParentRun | None) -> None:
        self.run = run
        self._began = time.monotonic()
        self._told: float | None = None
        run.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(run.folder)
        if self._lock is None:
            raise RunError(f"{run.folder} is in use by another process; end it first")
        for partial in (run.folder / "checkpoints").glob("*.tmp*"):  # of a process that was killed while it wrote
            partial.unlink()
        command = run.command()
        environment = {name: value for name, value in os.environ.items() if name != "FLOWMATCH_RL_RUN_DIR"}
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | environment
        if parent is not None:
            environment |= parent.child_environment(run.name)
            if child := parent.child_of(run.folder):
                command.append(option("trainer.logger.init_args.run_id", child))
        with (run.folder / OUTPUT).open("ab") as output:
            # A session of its own: Ctrl-C is for this process, which tells the others. The lock is inherited, so that
            # it is held as long as the run is trained, also when this process is killed.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=[self._lock.fileno()],
            )
        self._lock.write(str(self._process.pid))
        self._lock.flush()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    @property
    def minutes(self) -> float:
        """Minutes since it began."""
        return (time.monotonic() - self._began) / 60.0

    @property
    def stopping_s(self) -> float | None:
        """Seconds since it was told to stop; None if it was not."""
        return None if self._told is None else time.monotonic() - self._told

    def stop(self) -> None:
        """Tell it to save and stop."""
        if self._told is None and not self.ended:
            self._told = time.monotonic()
            self._process.terminate()

    def kill(self) -> None:
        """End it and what it started at once."""
        if not self.ended:
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> int:
        """Wait for its end, release the lock and return its exit status."""
        status = self._process.wait()
        assert self._lock is not None
        self._lock.close()
        return status


def _lock(folder: Path) -> io.TextIOWrapper | None:
    """Lock a run's folder; None if a process holds it. The file is emptied: its reader knows that there is no owner."""
    file = (folder / _LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    return file


def _take_over(runs: Sequence[PlannedRun]) -> None:
    """End processes of an earlier command that was killed; they save, and their runs go on from there.

    Raises:
        RunError: If one cannot be ended.
    """
    held = [run for run in runs if not _is_free(run.folder)]
    for run in held:
        owner = _owner(run)
        print(f"{run.name} is still trained by process {owner}, left over by a command that was killed", flush=True)
        os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while held and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        held = [run for run in held if not _is_free(run.folder)]
    for run in held:
        os.killpg(_owner(run), signal.SIGKILL)
        time.sleep(1.0)
        if not _is_free(run.folder):
            raise RunError(f"process {_owner(run)}, which trains {run.folder}, cannot be ended")


def holds_work(folder: Path) -> bool:
    """Whether a run has left something in its folder that the same command goes on from, or is at work there.

    Args:
        folder: The run's folder.
    """
    left = (folder / RESULT).is_file() or (folder / _LAST).is_file()
    return left or ((folder / _LOCK).is_file() and not _is_free(folder))


def _is_free(folder: Path) -> bool:
    file = _lock(folder)
    if file is not None:
        file.close()
    return file is not None


def _owner(run: PlannedRun) -> int:
    """The process that holds a run's folder; it leads a group of its own, as those that this module starts do."""
    text = (run.folder / _LOCK).read_text()
    try:
        if os.getpgid(int(text)) == int(text):
            return int(text)
    except (ValueError, ProcessLookupError):
        pass
    raise RunError(f"{run.folder} is in use by a process that is not known; end it first")


def _final_return(run: PlannedRun) -> str:
    metrics = json.loads((run.folder / RESULT).read_text())["metrics"]
    return f"{metrics['test/return_mean']:.1f}" if "test/return_mean" in metrics else "unknown"


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
