"""The jobs of a sweep: trials are begun one after another, watched, and given up where the pruner says so."""

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.checks import UserError
from flowmatch_rl.experiments.curves import CURVE_PATH, measured_columns, read_curve
from flowmatch_rl.experiments.plan import Job
from flowmatch_rl.experiments.queue import Failure, JobSource
from flowmatch_rl.experiments.sweeps.plan import Sweep
from flowmatch_rl.experiments.sweeps.space import number
from flowmatch_rl.experiments.sweeps.trials import RUNNING, Direction, Trials
from flowmatch_rl.files import RESULT

_ERROR = "flowmatch-rl: error: "


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a run during its training.

    Attributes:
        counts: What the steps are, ``env_steps`` or ``gradient_steps``.
        column: What was measured, a column of the learning curve.
        values: Its values by step, ascending.
    """

    counts: str
    column: str
    values: dict[int, float]


@dataclass(frozen=True)
class Objective:
    """What trials are compared by.

    Attributes:
        metric: Metric of the final test, with ``test/``.
        direction: Whether the highest or the lowest value is the best.
        prune_by: Column of the learning curve; None for that of the metric.
    """

    metric: str
    direction: Direction
    prune_by: str | None = None

    @property
    def label(self) -> str:
        """The metric in short."""
        return self.metric.removeprefix("test/")

    def evaluations(self, folder: Path, needed: bool) -> Evaluations | None:
        """What a pruner may know of a run so far; None before the first evaluation.

        Args:
            folder: Folder of the run.
            needed: Whether to raise where evaluations do not measure it, rather than return None.

        Raises:
            UserError: If they do not.
        """
        measured = measured_columns(folder)
        wanted = [self.prune_by] if self.prune_by else [self.label, f"val_{self.label}", f"held_out_{self.label}"]
        column = next((name for name in wanted if name in measured), None)
        if measured and column is None and needed:
            raise UserError(
                f"the evaluations in {folder / CURVE_PATH} have no {wanted[0]} to prune trials by; choose one of "
                f"{', '.join(measured)} with --prune_by, or --pruner NoPruner"
            )
        found = None if column is None else read_curve(folder, column)
        if column is None or found is None:
            return None
        counts, table = found
        values = {int(step): float(value) for step, value in zip(table[counts], table[column], strict=True)}
        return Evaluations(counts, column, values)

    def value(self, folder: Path) -> float:
        """The value of a finished run.

        Args:
            folder: Its folder.

        Raises:
            UserError: If its test did not measure the metric, or it is not finite.
        """
        metrics = json.loads((folder / RESULT).read_text())["metrics"]
        if self.metric not in metrics:
            names = ", ".join(name.removeprefix("test/") for name in metrics) or "nothing"
            raise UserError(f"its test has no {self.label}, but {names}")
        if not math.isfinite(metrics[self.metric]):
            raise UserError(f"{self.label} is {metrics[self.metric]}")
        return metrics[self.metric]


class TrialJobs(JobSource):
    """Runs of the trials of a sweep. The runs of a trial follow each other, one for each seed.

    What becomes of a trial depends on what its runs have written alone, and not on when it is read.

    Args:
        sweep: The sweep.
        output: Its folder.
        trials: Its trials.
        objective: What they are compared by.
        parent: MLflow run that the runs lie under, or None.
    """

    def __init__(
        self, sweep: Sweep, output: Path, trials: Trials, objective: Objective, parent: ParentRun | None
    ) -> None:
        self._sweep, self._output, self._trials, self._objective = sweep, output, trials, objective
        self._parent = parent
        self._open = deque(trial.number for trial in trials.in_state(RUNNING))
        self._ended = len(trials) - len(self._open)
        self._read: dict[Path, int] = {}
        self._began = time.monotonic()
        self._pruned: dict[int, str] = {}

    def begun(self) -> Sequence[Job]:
        """The runs of trials that have not ended, of which there is a folder."""
        jobs = [job for trial in self._trials.in_state(RUNNING) for job in self._jobs(trial.number)]
        return [job for job in jobs if job.folder.is_dir() and not job.finished]

    def next(self) -> Job | None:
        """The next run of a trial that has begun, or the first one of a new trial."""
        while self._open or self._may_begin:
            number = self._open.popleft() if self._open else self._trials.add().number
            jobs = self._jobs(number)
            # A finished run is one of a command that was killed before it noted that.
            waiting = next((job for job in jobs if not job.finished), None)
            if waiting is not None and self.superfluous(jobs[0]) is None:
                return waiting
            print(f"[{self.progress()}] {jobs[0].name} has ended, {self._conclude(jobs)}", flush=True)
        return None

    @property
    def _may_begin(self) -> bool:
        timeout = self._sweep.timeout_s
        in_time = timeout is None or time.monotonic() - self._began < timeout
        return in_time and len(self._trials) < self._sweep.num_trials

    def superfluous(self, job: Job) -> str | None:
        """Why the first run of a trial is to be given up, by what its new evaluations have measured."""
        trial = int(job.method)
        if trial in self._pruned:
            return self._pruned[trial]
        table = job.folder / CURVE_PATH
        written = table.stat().st_mtime_ns if table.is_file() else 0
        is_first = job.seed == self._sweep.seeds[0]
        if not is_first or self._read.get(table, 0) == written:
            return None
        self._read[table] = written
        known = self._objective.evaluations(job.folder, needed=self._sweep.pruner.prunes)
        step = None if known is None else self._trials.report(trial, known.values)
        if known is not None and step is not None:
            self._pruned[trial] = f"is pruned after {step} {known.counts}, {known.column} {number(known.values[step])}"
        return self._pruned.get(trial)

    def ended(self, job: Job, status: int) -> str:
        """Note how a run has ended, and so its trial, unless there are seeds left."""
        if not job.finished and int(job.method) not in self._pruned:
            return self._fail(job, _reason(Failure(job, status)))
        jobs = self._jobs(int(job.method))
        if job.finished and self.superfluous(jobs[0]) is None and not all(other.finished for other in jobs):
            self._open.appendleft(int(job.method))
            return "its trial continues with the next seed"
        return self._conclude(jobs)

    def progress(self) -> str:
        """Number of trials that have ended."""
        return f"{self._ended} of {max(self._sweep.num_trials, len(self._trials))}"

    def _jobs(self, trial: int) -> list[Job]:
        return self._sweep.jobs(self._output, trial, self._trials[trial].params)

    def _conclude(self, jobs: Sequence[Job]) -> str:
        """End a trial whose runs are all finished, or which is given up."""
        trial = int(jobs[0].method)
        if self.superfluous(jobs[0]) is not None:
            self._trials.prune(trial)
            self._mark(jobs[0], "pruned")
            self._ended += 1
            return "pruned"
        try:
            values = [self._objective.value(job.folder) for job in jobs]
        except UserError as error:
            return self._fail(jobs[0], str(error))
        value = sum(values) / len(values)
        self._trials.complete(trial, value)
        self._ended += 1
        best = self._trials.best()
        is_best = best is not None and best.number == trial
        return f"{self._objective.label} {number(value)}{', the best so far' * is_best}"

    def _fail(self, job: Job, reason: str) -> str:
        self._trials.fail(int(job.method), reason)
        self._mark(job, "failed")
        self._ended += 1
        return f"failed: {reason}"

    def _mark(self, job: Job, state: str) -> None:
        if self._parent is not None:
            self._parent.tag_child(job.folder, {"trial_state": state})


def _reason(failure: Failure) -> str:
    """Why a run has no result, in a line: its own last words, if it had any."""
    said = next((line for line in reversed(failure.last_lines()) if _ERROR in line), None)
    last = said.partition(_ERROR)[2] if said else next(iter(failure.last_lines()[-1:]), "")
    return f"{last} ({failure.end})" if last else f"ended with {failure.end}"
