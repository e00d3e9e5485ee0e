"""Jobs on a SLURM cluster, submitted by ``submitit``: the extra ``flowmatch_rl[slurm]``."""

import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit

from flowmatch_rl.checks import RunError, check_range
from flowmatch_rl.experiments.executors import (
    CUT_OFF,
    GRACE_S,
    POLL_S,
    Execution,
    Executor,
    LocalProcess,
    is_free,
)
from flowmatch_rl.experiments.plan import OUTPUT, Job
from flowmatch_rl.files import write_text

_FILES = "submitit"
"""Folder of submitit's files, in that of a job."""

_NUMBER = ".submitted"
"""File with the number of the submission, as long as it has not been seen to its end."""

_STOP = ".stop"
"""File that asks a job to stop: also where it is out of reach of signals."""


@dataclass(frozen=True)
class SlurmExecutor(Executor):
    """Submits each job to SLURM, from a folder that the nodes share.

    A job that reaches its time limit writes a checkpoint and is submitted again. A command that was killed leaves its
    jobs running; the same command cancels them, and resumes.

    Args:
        partition: Partition; SLURM's default if None.
        time_min: Time limit of a job in minutes, at least 5.
        cpus: CPU cores of a job.
        gpus: GPUs of a job.
        memory_gb: Memory of a job in gigabytes; SLURM's default if None.
        options: Further options of ``sbatch``, by name without dashes.
        cluster: ``slurm``, or ``local`` to try it without one.
    """

    partition: str | None = None
    time_min: int = 1440
    cpus: int = 1
    gpus: int = 0
    memory_gb: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        check_range("[5, inf)", time_min=self.time_min)
        check_range("[1, inf)", cpus=self.cpus, memory_gb=self.memory_gb)
        check_range("[0, inf)", gpus=self.gpus)

    @property
    def default_workers(self) -> int:
        """So many that SLURM decides."""
        return 1000

    def start(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> Execution:
        """Submit a job."""
        (job.folder / _STOP).unlink(missing_ok=True)
        executor = submitit.AutoExecutor(job.folder / _FILES, cluster=self.cluster)
        shared: dict[str, Any] = {"timeout_min": self.time_min, "cpus_per_task": self.cpus, "gpus_per_node": self.gpus}
        shared |= {} if self.memory_gb is None else {"mem_gb": self.memory_gb}
        named = {} if self.partition is None else {"partition": self.partition}
        executor.update_parameters(
            **shared,
            name=job.name,
            slurm_signal_delay_s=int(GRACE_S),
            slurm_additional_parameters=named | self.options,
        )
        submitted = executor.submit(_run, job.folder.absolute(), list(command), dict(environment))
        write_text(job.folder / _NUMBER, submitted.job_id)
        return _Submission(job, submitted)

    def end_leftovers(self, jobs: Sequence[Job]) -> None:
        """Ask submitted jobs to stop, and cancel them when their time is up."""
        if self.cluster == "slurm" and shutil.which("srun") is None:
            raise RunError("there is no SLURM here: the command srun is not found")
        left = [submission for job in jobs if (submission := self._submission(job)) is not None]
        for submission in left:
            print(f"{submission.job.name} is still submitted, left over by a command that was killed", flush=True)
        for end in (_Submission.stop, _Submission.kill):
            for submission in left:
                end(submission)
            deadline = time.monotonic() + GRACE_S
            while left and time.monotonic() < deadline:
                time.sleep(POLL_S)
                left = [submission for submission in left if submission.runs]
        if left:
            raise RunError(f"what trains {left[0].job.folder} cannot be ended")

    def _submission(self, job: Job) -> "_Submission | None":
        """What an earlier command has submitted and not seen to its end."""
        if not (job.folder / _NUMBER).is_file():
            return None
        kind = submitit.SlurmJob if self.cluster == "slurm" else submitit.LocalJob
        found = _Submission(job, kind(job.folder / _FILES, (job.folder / _NUMBER).read_text()))
        return found if found.runs else None


class _Submission(Execution):
    """A submitted job."""

    def __init__(self, job: Job, submitted: submitit.Job[int]) -> None:
        self.job = job
        self._submitted = submitted

    @property
    def runs(self) -> bool:
        """Whether it waits for a node or runs."""
        return not self._submitted.done() or not is_free(self.job.folder)

    def poll(self) -> int | None:
        """Exit status of the job's process, 1 where it never got to its end."""
        if not self._submitted.done():
            return None
        error = self._submitted.exception()
        if error is not None:
            with (self.job.folder / OUTPUT).open("a") as output:
                output.write(f"{error}\n")
        (self.job.folder / _NUMBER).unlink(missing_ok=True)
        return self._submitted.result() if error is None else 1

    def stop(self) -> None:
        """Ask it to stop; one that waits for a node is cancelled."""
        (self.job.folder / _STOP).touch()
        if self._submitted.state == "PENDING":
            self.kill()

    def kill(self) -> None:
        """Cancel it."""
        if not self._submitted.done():
            self._submitted.cancel(check=False)


def _run(folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """What runs on the node: the job's process, until it ends or is to stop."""
    signalled: list[int] = []
    # Of SLURM near the time limit, before a preemption, and at a cancellation.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda caught, _: signalled.append(caught))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        del os.environ[name]  # Lightning would wait for as many tasks as there are devices
    process, stopping = LocalProcess(folder, command, environment), False
    try:
        while (status := process.poll()) is None:
            if not stopping and (signalled or (folder / _STOP).is_file()):
                stopping = True
                process.stop()
            time.sleep(POLL_S)
    finally:
        process.kill()
    return CUT_OFF if signalled and status != 0 else status
