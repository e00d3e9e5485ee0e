"""Tracking in MLflow, by default in a local SQLite file: written down at once, delivered by another process."""

import atexit
import getpass
import json
import os
import re
import sys
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.callbacks.addresses import LOCAL_FOLDER, artifact_folder, run_lines, run_page, tracking_address
from flowmatch_rl.callbacks.courier import Courier
from flowmatch_rl.callbacks.delivered import Delivered, record_of, what_is_left
from flowmatch_rl.callbacks.journal import (
    END,
    FILE,
    INPUT,
    METRICS,
    MODEL,
    OPEN,
    PARAMETERS,
    TAGS,
    Journal,
    journals,
    log_of,
    new_journal,
)
from flowmatch_rl.callbacks.run_logger import RunLogger
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.files import RUN_TIME, shown
from flowmatch_rl.redaction import redact

EXPERIMENT = "flowmatch_rl"
"""Experiment that runs belong to where no other is named."""

RUN_NAME = "mlflow.runName"
"""MLflow's tag of a run's name."""

_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}
_LONGEST = 500
"""Characters of a parameter that every version of MLflow takes."""


class Tracker(RunLogger):
    """An MLflow run.

    Without an address, runs are kept in ``runs/mlflow.db`` and their files in ``runs/mlflow_artifacts``, both under the
    working folder: nothing has to be started. ``flowmatch-rl ui`` opens them.

    Whatever is tracked is written to a journal in the run's folder at once, and delivered to MLflow by another process
    every few seconds. A server that does not answer never stops a training: what is left at the end of the run is
    delivered by ``flowmatch-rl deliver``.

    Args:
        experiment_name: Experiment the run belongs to; it is made if there is none.
        run_name: Name of the run; the task and the time at which it begins if None.
        tracking_uri: Address of a tracking server such as ``http://host:5000``; the environment variable
            ``MLFLOW_TRACKING_URI`` or the local file if None.
        log_checkpoints: Whether the last and the best checkpoint are kept as artifacts.
        log_model: Whether the policy of a finished run is logged as a model, for ``mlflow.pyfunc`` and
            ``mlflow models serve``.
        registered_model_name: Name that the model is registered under, as a new version; not registered if None.
        run_id: An existing run to resume.
        tags: Tags of the run.
        system_interval_s: Seconds between two measurements of processors, memory and GPUs, at least 1; None for none.
        patience_s: Seconds that the end of a run waits for a tracking that delivers nothing more, at least 0.

    Raises:
        UserError: If the address lacks its password, MLflow registers no model under the name, or none is logged.

    Attributes:
        address: Address of the tracking, of a server or of the local file.
        logs_model: Whether the policy of a finished run is logged as a model.
    """

    def __init__(
        self,
        experiment_name: str = EXPERIMENT,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        log_checkpoints: bool = True,
        log_model: bool = True,
        registered_model_name: str | None = None,
        run_id: str | None = None,
        tags: dict[str, str] | None = None,
        system_interval_s: float | None = 30.0,
        patience_s: float = 10.0,
    ) -> None:
        super().__init__()
        check_range("[0, inf)", patience_s=patience_s)
        check_range("[1, inf)", system_interval_s=system_interval_s)
        self._system_s = system_interval_s
        _check_model_name(registered_model_name, log_model)
        self.logs_model, self._registered_name = log_model, registered_model_name
        self.address = tracking_address(tracking_uri)
        self._experiment, self._tags, self._patience_s = experiment_name, tags or {}, patience_s
        self._given_name, self._given_run, self._log_checkpoints = run_name, run_id, log_checkpoints
        self._default_name = time.strftime(RUN_TIME)
        self._folder, self._command, self._resumes = Path(LOCAL_FOLDER) / self._default_name, "run", False
        self._journal: Journal | None = None
        self._courier: Courier | None = None
        self._status: str | None = None
        self._model: str | None = None
        self._checkpoints: list[ModelCheckpoint] = []
        self._copied: dict[str, float] = {}

    def begin_in(self, folder: Path, name: str, command: str, resumes: bool) -> None:
        """Choose the place of the journal, and name the run that is about to begin unless it has a name.

        MLflow would draw a name at random: the same for all runs, since each of them sets the seed first.

        Args:
            folder: The run's folder.
            name: The name.
            command: What is run; each command in a folder has journals of its own.
            resumes: Whether to continue the latest journal in the folder, and so its MLflow run, if there is one.
        """
        self._folder, self._default_name, self._command, self._resumes = folder, name, command, resumes

    @rank_zero_only
    def open(self) -> None:
        """Begin the journal, and start to deliver it; waits until MLflow is reached, or is known not to answer.

        Raises:
            UserError: If MLflow can never take the run: the experiment or the run to resume was deleted, or the
                address is none, or that of a file which is no database.
        """
        if self._courier is not None:
            return
        path = self._path().absolute()  # a program may change its working folder
        is_new = not path.exists()
        self._journal = Journal(path)
        self._journal.append(
            OPEN,
            address=redact(self.address),
            experiment=self._experiment,
            artifacts=artifact_folder(self.address),
            run_id=self._given_run,
            key=uuid.uuid4().hex,
            tags=self._first_tags(),
            system_s=self._system_s,
        )
        self._status, self._courier = None, Courier(path, self.address)
        atexit.register(self.close)
        known = self._courier.wait_for_first()
        if known.refusal is not None:
            self._courier.end()
            self._forget(is_new)
            raise UserError(known.refusal)
        if known.trouble is not None or self._courier.has_ended or known.run_id is None:
            reason = known.trouble or f"nothing is heard from the process that delivers, see {shown(log_of(path))}"
            warnings.warn(f"{reason}; what is tracked is kept in {shown(path)} and delivered later", stacklevel=1)

    def _path(self) -> Path:
        """The journal to continue, or a new one."""
        for path in reversed(journals(self._folder, self._command) if self._resumes else []):
            if self._given_run is None or Delivered.read(path).run_id in (None, self._given_run):
                return path
        return new_journal(self._folder, self._command)

    def _first_tags(self) -> dict[str, str]:
        """Tags that the run is made with; its name is the user's, or that of the process which started this one."""
        started_with = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT") or "{}")
        tags = {**source_tags(), RUN_NAME: self._default_name, **started_with, **self._tags}
        return tags if self._given_name is None else {**tags, RUN_NAME: self._given_name}

    def _forget(self, is_new: bool) -> None:
        """Leave nothing of a run that was refused; one that it should have continued stays."""
        assert self._journal is not None
        path = self._journal.path
        self._journal.close()
        atexit.unregister(self.close)
        self._journal = self._courier = None
        if is_new:
            for file in (path, record_of(path), log_of(path)):
                file.unlink(missing_ok=True)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()

    @property
    def run_id(self) -> str | None:
        """MLflow's identifier of the run; None before MLflow was reached."""
        return None if self._journal is None else Delivered.read(self._journal.path).run_id

    @property
    def page(self) -> str | None:
        """Address of the run's page, on the server or on that which ``flowmatch-rl ui`` starts; None if not known."""
        known = Delivered() if self._journal is None else Delivered.read(self._journal.path)
        if known.run_id is None or known.experiment_id is None:
            return None
        return run_page(self.address, known.experiment_id, known.run_id)

    def lines(self) -> list[str]:
        """Where the run is to be seen; waits until MLflow is reached, or is known not to answer."""
        self.open()
        model = [f"model        runs:/{self.run_id}/{self._model}"] if self._model and self.run_id else []
        return [*model, *run_lines(self.address, self.page, self.run_id)]

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self._experiment

    @property
    def version(self) -> str | None:
        """The run's identifier."""
        return self.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Track metrics.

        Args:
            metrics: Numbers by name; characters that MLflow does not know in names are left out.
            step: Step that they belong to.
        """
        values = {re.sub("[^a-zA-Z0-9_/. -]+", "", name): float(value) for name, value in metrics.items()}
        self._append(METRICS, values=values, step=step or 0)

    @rank_zero_only
    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Track parameters. One that the run has already stays as it is.

        Args:
            parameters: Values by name.
        """
        self._append(PARAMETERS, values={name: str(value)[:_LONGEST] for name, value in parameters.items()})

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run.

        Args:
            tags: Values by name.
        """
        self._append(TAGS, values=dict(tags))

    @rank_zero_only
    def log_input(self, data: Mapping[str, Any]) -> None:
        """Track what the run takes its data from.

        Args:
            data: Attributes of a ``flowmatch_rl.data.inputs.DataInput`` by name.
        """
        self._append(INPUT, **data)

    @rank_zero_only
    def log_file(self, path: Path, folder: str = "") -> None:
        """Copy a file to the run's artifacts, as it is when it is delivered.

        Args:
            path: The file.
            folder: Folder among the artifacts.
        """
        self._append(FILE, path=self._inside(path), folder=folder)

    @rank_zero_only
    def log_model(self, name: str, path: Path, step: int, description: Mapping[str, Any]) -> None:
        """Log a trained model, and register it if the user named it.

        Args:
            name: Name of the model; a run has one of each name and step.
            path: Its file, as it is when it is delivered.
            step: Step that it was trained to.
            description: What MLflow is told of it, see ``flowmatch_rl.callbacks.models.log_model``.
        """
        registered, self._model = self._registered_name, name
        self._append(MODEL, name=name, path=self._inside(path), step=step, registered=registered, **description)

    def _inside(self, path: Path) -> str:
        """A path relative to the run's folder, which may be moved before the file is delivered."""
        inside, folder = path.absolute(), self._folder.absolute()
        return str(inside.relative_to(folder) if inside.is_relative_to(folder) else inside)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember whose checkpoints are kept as artifacts at the end of the run."""
        if self._log_checkpoints and not any(known is checkpoint_callback for known in self._checkpoints):
            self._checkpoints.append(checkpoint_callback)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Note how the run ended: finished, failed, or killed if the user or the system ended it."""
        if self._journal is None:
            return
        for callback in self._checkpoints:
            for name in (*callback.best_k_models, callback.best_model_path, callback.last_model_path):
                self._log_checkpoint(Path(name))
        ended = isinstance(sys.exc_info()[1], KeyboardInterrupt | SIGTERMException)
        self._status = "KILLED" if ended else _STATUS.get(status, "FINISHED")
        self._append(END, status=self._status)

    def _log_checkpoint(self, path: Path) -> None:
        """Copy a checkpoint that has been written since it was copied last, as the training and its test end."""
        if path.is_file() and self._copied.get(str(path)) != path.stat().st_mtime:
            self._copied[str(path)] = path.stat().st_mtime
            self.log_file(path, path.stem)

    @rank_zero_only
    def close(self) -> None:
        """Wait until MLflow has everything, and say in one line what it has not.

        It waits as long as something is delivered, and up to ``patience_s`` seconds more; after an interruption up to
        ``patience_s`` seconds in all. A run that has not been finalized counts as killed.
        """
        if self._journal is None or self._courier is None:
            return
        if self._status is None:
            self._append(END, status="KILLED")
        courier, journal = self._courier, self._journal
        atexit.unregister(self.close)
        try:
            left = courier.wait_for_all(self._patience_s, None if self._status == "FINISHED" else self._patience_s)
        except FileNotFoundError:
            warnings.warn(f"{shown(journal.path)} was deleted; MLflow may lack what it held", stacklevel=1)
            return
        finally:
            courier.end()
            journal.close()
            self._courier, self._journal, self._resumes = None, None, True
        lost = f"{journal.lost} entries of {shown(journal.path)} could not be written" if journal.lost else ""
        known = what_is_left(journal.path, Delivered.read(journal.path), left, self.address)
        if lost or known:
            warnings.warn("; ".join(filter(None, [known, lost])), stacklevel=1)

    def _append(self, kind: str, **values: Any) -> None:
        self.open()
        assert self._journal is not None
        self._journal.append(kind, **values)


def _check_model_name(name: str | None, log_model: bool) -> None:
    if name is not None and (not name.strip() or set("/:") & set(name)):
        raise UserError(f"registered_model_name must be a name without '/' and ':', got {name!r}")
    if name is not None and not log_model:
        raise UserError(f"registered_model_name {name!r} needs log_model true, got false")


def source_tags() -> dict[str, str]:
    """MLflow's tags of who starts a run, and by what."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a number without a name, as in containers
        user = str(os.getuid())
    return {"mlflow.user": user, "mlflow.source.name": sys.argv[0], "mlflow.source.type": "LOCAL"}
