"""An MLflow run that holds others: the runs of a comparison, each tracked by a process of its own."""

import json
from pathlib import Path
from typing import Literal

from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks.tracking import Tracker

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that lies under another."""


class ParentRun:
    """An MLflow run under which the runs of other processes are kept.

    It is made where ``Tracker`` keeps runs. A process takes part if it inherits ``child_environment``.

    Args:
        name: Name of the run.
        run_id: The run of an earlier command to resume; a new one is made if MLflow no longer knows it.
    """

    def __init__(self, name: str, run_id: str | None = None) -> None:
        tracker = Tracker(run_name=name)  # makes a run when it is asked for one, not before
        self._client = MlflowClient(tracker.address)
        if run_id is not None and self._known(run_id):
            self.run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            made = tracker.run_id
            assert made is not None, "an experiment has just been opened"
            self.run_id = made

    def child_environment(self, name: str) -> dict[str, str]:
        """Environment variables that put the run of a process under this one.

        Args:
            name: Name of the child.
        """
        return {"MLFLOW_RUN_CONTEXT": json.dumps({PARENT: self.run_id, "mlflow.runName": name})}

    def child_of(self, folder: Path) -> str | None:
        """Identifier of the child whose files lie in a folder, the latest if there are several; None without one."""
        for run in self._children():
            if run.data.tags.get("run_dir") == str(folder):
                return run.info.run_id
        return None

    def publish(self, path: Path) -> None:
        """Copy a file to the artifacts of this run.

        Args:
            path: The file.
        """
        self._client.log_artifact(self.run_id, str(path))

    def close(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run.

        Args:
            status: How it ended.
        """
        self._client.set_terminated(self.run_id, status)

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
