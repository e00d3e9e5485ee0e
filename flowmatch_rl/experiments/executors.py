"""Where jobs run: executors start them, and ask them to stop. The local one gives each a process of this machine."""

import abc
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowmatch_rl.checks import RunError
from flowmatch_rl.experiments.plan import OUTPUT, Job
from flowmatch_rl.files import lock_file

POLL_S = 0.1

GRACE_S = 120.0
"""Seconds that a job has, once it is asked to stop, for the update or evaluation at hand and a checkpoint."""

CUT_OFF = 75
"""Status of a job that its scheduler stopped before its end; it can be started again."""

_LOCK = ".lock"


class Execution(abc.ABC):
    """A job that was started. It holds the lock of the job's folder as long as it runs."""

    @abc.abstractmethod
    def poll(self) -> int | None:
        """Exit status, negative for a signal; None before the end."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ask it to write a checkpoint and end."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it and what it started at once."""


class Executor(abc.ABC):
    """Starts jobs somewhere."""

    @property
    @abc.abstractmethod
    def default_workers(self) -> int:
        """Jobs at a time where the user names no number."""

    @abc.abstractmethod
    def start(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> Execution:
        """Start a job.

        Args:
            job: The job.
            command: The command that makes its run, or resumes it.
            environment: Environment variables to set.

        Raises:
            RunError: If another process holds its folder.
        """

    @abc.abstractmethod
    def end_leftovers(self, jobs: Sequence[Job]) -> None:
        """End what an earlier command that was killed has left running; it writes checkpoints to resume from.

        Args:
            jobs: Jobs to look after.

        Raises:
            RunError: If one cannot be ended.
        """


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Runs each job in a process of this machine."""

    @property
    def default_workers(self) -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def start(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> Execution:
        """Start a process that holds the folder."""
        return LocalProcess(job.folder, command, environment)

    def end_leftovers(self, jobs: Sequence[Job]) -> None:
        """Terminate the processes that hold folders, and kill them when their time is up."""
        held = [job for job in jobs if not is_free(job.folder)]
        for job in held:
            owner = _owner(job.folder)
            print(f"{job.name} is still trained by process {owner}, left over by a command that was killed", flush=True)
            os.kill(owner, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while held and time.monotonic() < deadline:
            time.sleep(POLL_S)
            held = [job for job in held if not is_free(job.folder)]
        for job in held:
            os.killpg(_owner(job.folder), signal.SIGKILL)
            time.sleep(1.0)
            if not is_free(job.folder):
                raise RunError(f"process {_owner(job.folder)}, which trains {job.folder}, cannot be ended")


class LocalProcess(Execution):
    """A process of this machine that runs a job.

    Args:
        folder: Folder of the job.
        command: The command.
        environment: Environment variables to set.

    Raises:
        RunError: If another process holds the folder.
    """

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_file(folder / _LOCK)
        if lock is None:
            raise RunError(f"{folder} is in use by another process; end it first")
        for partial in (folder / "checkpoints").glob("*.tmp*"):  # of a process that was killed while it wrote
            partial.unlink()
        inherited = {name: value for name, value in os.environ.items() if name != "FLOWMATCH_RL_RUN_DIR"}
        with lock, (folder / OUTPUT).open("ab") as output:
            # A session of its own: Ctrl-C is for this process, which asks the others to stop. They inherit the lock,
            # so that it is held as long as the job runs, also when this process is killed.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | inherited | dict(environment),
                start_new_session=True,
                pass_fds=[lock.fileno()],
            )
            lock.write(f"{self._process.pid} {socket.gethostname()}")

    def poll(self) -> int | None:
        """Exit status of the process; None before its end."""
        return self._process.poll()

    def stop(self) -> None:
        """Terminate the process."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill the process and its children."""
        if self.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def is_free(folder: Path) -> bool:
    """Whether no process holds the folder of a job.

    Args:
        folder: The folder.
    """
    if not (folder / _LOCK).is_file():
        return True
    lock = lock_file(folder / _LOCK)
    if lock is not None:
        lock.close()
    return lock is not None


def _owner(folder: Path) -> int:
    """The process that holds a job's folder; it leads a group of its own, as those that this module starts do."""
    number, _, host = (folder / _LOCK).read_text().partition(" ")
    if host and host != socket.gethostname():
        raise RunError(f"{folder} is in use by process {number} of {host}; end it first")
    try:
        if os.getpgid(int(number)) == int(number):
            return int(number)
    except (ValueError, ProcessLookupError):
        pass
    raise RunError(f"{folder} is in use by a process that is not known; end it first")
