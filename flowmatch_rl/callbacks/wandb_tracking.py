"""Tracking in Weights & Biases."""

import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.utilities.rank_zero import rank_zero_only

from flowmatch_rl.callbacks.addresses import LOCAL_FOLDER
from flowmatch_rl.callbacks.run_logger import RunLogger, import_extra
from flowmatch_rl.callbacks.tracking import EXPERIMENT
from flowmatch_rl.checks import UserError, check_word
from flowmatch_rl.files import shown, write_text
from flowmatch_rl.redaction import redact

if TYPE_CHECKING:
    from wandb import Run

_RUN = "wandb_run.txt"
"""File in the folder ``tracking`` of a run that names its run at Weights & Biases."""

_STEP = "step"
_MODES = ("online", "offline", "disabled")


class WandbTracker(RunLogger):
    """A run at Weights & Biases; needs the extra ``wandb``, and an account unless it is offline.

    It takes metrics, parameters, figures, videos, tables and the configuration; checkpoints stay in the run's folder.
    A run that is resumed in its folder continues its run. Offline, what is tracked stays in ``wandb`` in the run's
    folder, until ``wandb sync`` delivers it.

    Args:
        project: Project that the run belongs to.
        entity: User or team that the project belongs to; that of the account if None.
        run_name: Name of the run; the task and the time at which it begins if None.
        group: Runs to show together, if any.
        labels: Words that runs are found by, which Weights & Biases calls tags.
        mode: ``online``, ``offline`` or ``disabled``; the environment variable ``WANDB_MODE`` if None, and online if
            that is not set either.

    Raises:
        UserError: If wandb is not installed, or the mode is none of these.
    """

    def __init__(
        self,
        project: str = EXPERIMENT,
        entity: str | None = None,
        run_name: str | None = None,
        group: str | None = None,
        labels: Sequence[str] = (),
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        super().__init__()
        if mode is not None:
            check_word(_MODES, mode=mode)
        self._wandb = import_extra("wandb", "WandbTracker", "wandb")
        self._project, self._given_name, self._name = project, run_name, run_name
        self._options = {"entity": entity, "group": group, "tags": list(labels) or None, "mode": mode}
        self._folder, self._resumes, self._failed = Path(LOCAL_FOLDER), False, False
        self._run: Run | None = None
        self._step = 0

    def begin_in(self, folder: Path, name: str, command: str, resumes: bool) -> None:
        """Choose the folder, and name the run unless it has a name.

        Args:
            folder: The run's folder.
            name: The name.
            command: What is run.
            resumes: Whether to continue the run that the folder names, if it does.
        """
        self._folder, self._name, self._resumes = folder, self._given_name or name, resumes

    @property
    def name(self) -> str:
        """Name of the project."""
        return self._project

    @property
    def version(self) -> str | None:
        """The run's identifier; None before it begins."""
        return None if self._run is None else self._run.id

    @property
    def experiment(self) -> "Run":
        """The run, as the package wandb knows it."""
        return self._open()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Track metrics.

        Args:
            metrics: Numbers by name.
            step: Step that they belong to, ``step`` at Weights & Biases, over which it draws them.
        """
        self._step = step or 0
        self._log({name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Track parameters.

        Args:
            parameters: Values by name.
        """
        self._open().config.update(dict(parameters), allow_val_change=True)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Track tags among the parameters, as ``run/NAME``.

        Args:
            tags: Values by name.
        """
        self.log_parameters({f"run/{name}": value for name, value in tags.items()})

    @rank_zero_only
    def log_file(self, path: Path, folder: str = "") -> None:
        """Track a figure as a picture, a video as a video, and any other file as an artifact.

        Args:
            path: The file.
            folder: Folder among the run's files.
        """
        run, key = self._open(), f"{folder}/{path.stem}".lstrip("/")
        if path.suffix == ".png":
            self._log({key: self._wandb.Image(str(path))})
        elif path.suffix in (".gif", ".mp4"):
            self._log({key: self._wandb.Video(str(path))})
        else:
            run.log_artifact(str(path), name=f"{run.id}-{path.name}", type=folder or "run")

    def _log(self, values: dict[str, Any]) -> None:
        self._open().log(values | {_STEP: self._step})

    def lines(self) -> list[str]:
        """Address of the run, or where it is kept and how to deliver it."""
        run = self.experiment
        if run.disabled:
            return ["tracking     disabled (Weights & Biases)"]
        if run.offline:
            place = shown(Path(run.settings.sync_dir))
            return [f"tracking     {place}", f"deliver it   wandb sync {place}"]
        return [f"tracking     {run.url}"]

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note whether the run failed.

        Args:
            status: ``success``, or how it broke off.
        """
        self._failed = status not in ("success", "finished")

    @rank_zero_only
    def close(self) -> None:
        """End the run, once what is tracked has been sent."""
        if self._run is not None:
            self._run.finish(exit_code=int(self._failed))
            self._run, self._resumes = None, True

    def _open(self) -> "Run":
        if self._run is not None:
            return self._run
        self._folder.mkdir(parents=True, exist_ok=True)
        # It keeps the arguments of the command, which may hold a password of another tracker.
        secret = any(redact(word) != word for word in sys.argv)
        try:
            self._run = self._wandb.init(
                project=self._project,
                name=self._name,
                dir=self._folder.resolve(),  # its service is a process with a folder of its own
                id=self._identifier(),
                resume="allow",
                settings=self._wandb.Settings(silent=True, x_disable_meta=secret),
                **self._options,
            )
        except self._wandb.Error as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise UserError(
                f"Weights & Biases cannot begin a run: {reason}; without an account, set trainer.logger.init_args.mode "
                "to offline"
            ) from error
        assert self._run is not None
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP, step_sync=True)
        return self._run

    def _identifier(self) -> str:
        """Identifier of the run to continue, or a new one, which the run's folder then names."""
        file = self._folder / "tracking" / _RUN
        if not (self._resumes and file.is_file()):
            write_text(file, uuid.uuid4().hex[:8])
        return file.read_text().strip()
