"""An MLflow run that holds others: the runs of a comparison or a sweep, each tracked by a process of its own."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from flowmatch_rl.callbacks.addresses import artifact_folder, place_of, tracking_address
from flowmatch_rl.callbacks.database import NoAnswerError, bounded_requests, connect, open_experiment
from flowmatch_rl.callbacks.tracking import EXPERIMENT, RUN_NAME, source_tags
from flowmatch_rl.checks import UserError
from flowmatch_rl.redaction import redact

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that lies under another."""

_FAILURES = (MlflowException, SQLAlchemyError, OSError, NoAnswerError)


class ParentRun:
    """An MLflow run under which the runs of other processes are kept.

    It is made where ``Tracker`` keeps runs. A process takes part if it inherits ``child_environment``. MLflow must
    answer when it is made; whatever it does not answer later is left out with a warning, and stops no runs.

    Args:
        name: Name of the run.
        run_id: The run of an earlier command to resume; a new one is made if MLflow no longer knows it.

    Raises:
        UserError: If MLflow does not answer, or cannot be used.
    """

    def __init__(self, name: str, run_id: str | None = None) -> None:
        address = tracking_address()
        self._place = place_of(address)
        try:
            with bounded_requests():
                self._client = connect(address)
                self.run_id = self._open(name, run_id, address)
        except _FAILURES as error:
            raise UserError(f"{_reason(error)}; start it, or work without it: --tracking false") from error

    def _open(self, name: str, run_id: str | None, address: str) -> str:
        if run_id is not None and self._known(run_id):
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        experiment = open_experiment(self._client, EXPERIMENT, artifact_folder(address))
        return self._client.create_run(experiment, tags={**source_tags(), RUN_NAME: name}).info.run_id

    def child_environment(self, name: str, tags: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment variables that put the run of a process under this one.

        Args:
            name: Name of the child.
            tags: Further tags of the child, by name.
        """
        return {"MLFLOW_RUN_CONTEXT": json.dumps({**(tags or {}), PARENT: self.run_id, RUN_NAME: name})}

    def child_of(self, folder: Path) -> str | None:
        """Identifier of the child whose files lie in a folder, the latest if there are several; None without one."""
        with self._unless_it_fails(f"the earlier run in {folder} is not looked up"):
            for run in self._children():
                if run.data.tags.get("run_dir") == str(folder):
                    return run.info.run_id
        return None

    def tag_child(self, folder: Path, tags: Mapping[str, str]) -> None:
        """Set tags of the child whose files lie in a folder; nothing if there is none.

        Args:
            folder: Folder of the child.
            tags: Values by name.
        """
        with self._unless_it_fails(f"the tags of the run in {folder} are not set"):
            for run in self._children():
                if run.data.tags.get("run_dir") == str(folder):
                    for name, value in tags.items():
                        self._client.set_tag(run.info.run_id, name, value)

    def publish(self, path: Path) -> None:
        """Copy a file to the artifacts of this run.

        Args:
            path: The file.
        """
        with self._unless_it_fails(f"{path} is not copied"):
            self._client.log_artifact(self.run_id, str(path))

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run.

        Args:
            status: How it ended.
        """
        with self._unless_it_fails(f"the run of the whole is not marked as {status}; the same command does so later"):
            self._client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _unless_it_fails(self, consequence: str) -> Iterator[None]:
        """Warn where MLflow does not answer, in a ``with`` block."""
        try:
            with bounded_requests():
                yield
        except _FAILURES as error:
            warnings.warn(f"MLflow at {self._place} fails ({_reason(error)}): {consequence}", stacklevel=1)

    def _known(self, run_id: str) -> bool:
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return run.info.lifecycle_stage == LifecycleStage.ACTIVE

    def _children(self) -> list[Run]:
        experiment = self._client.get_run(self.run_id).info.experiment_id
        return list(
            self._client.search_runs(
                [experiment], f"tags.`{PARENT}` = '{self.run_id}'", max_results=10_000, order_by=["start_time DESC"]
            )
        )


def _reason(error: Exception) -> str:
    return redact(str(error).strip().splitlines()[0])
