"""Runs that are checked before any of them begins: model and data are made, and nothing else."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Trainer

from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.fitting import check_fit
from flowmatch_rl.cli.training import FlowMatchCLI
from flowmatch_rl.experiments.plan import Job


class _ModelAndData(FlowMatchCLI):
    """Makes model and data, and checks that they fit each other; no trainer of theirs, no folder."""

    monitor: tuple[str, str] | None = None

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Check only."""
        check_fit(self.model, self.datamodule)
        # What a model chooses its best checkpoint by depends on its data, which it knows by its trainer.
        trainer: Any = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
        trainer.datamodule = self.datamodule
        self.model.trainer = trainer
        self.monitor = getattr(self.model, "monitor", None)


def check_runs(jobs: Iterable[Job]) -> None:
    """Make model and data of jobs, so that a value which does not fit is named before anything runs.

    Args:
        jobs: Jobs; of each task with each method the first one is tried, unless all of them are finished.

    Raises:
        UserError: If one cannot be run.
    """
    first = {(job.task, job.method): job for job in reversed([job for job in jobs if not job.finished])}
    for (task, method), job in first.items():
        try:
            check_run(job.arguments)
        except UserError as error:
            raise UserError(f"method {method!r} on task {task!r}: {error}") from error


def check_run(arguments: Sequence[str]) -> tuple[str, str] | None:
    """Make model and data of a run.

    Args:
        arguments: Arguments of ``fit``.

    Returns:
        The metric by which the model chooses its best checkpoint, and whether the highest or the lowest value is the
        best, ``max`` or ``min``; None if it chooses by none.

    Raises:
        UserError: If it cannot be run.
    """
    return _ModelAndData([*arguments, "--seed_everything=false", "--trainer.logger=false"], run=False).monitor
