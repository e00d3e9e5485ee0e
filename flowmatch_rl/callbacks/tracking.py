"""Tracking in MLflow, by default in a local SQLite file."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from flowmatch_rl.callbacks.database import (
    LOCAL_FOLDER,
    check_run,
    check_server,
    local_address,
    open_database,
    open_experiment,
    run_page,
)
from flowmatch_rl.checks import UserError
from flowmatch_rl.files import RUN_TIME
from flowmatch_rl.redaction import HIDDEN, redact, redact_all

_VERSIONS = ("flowmatch_rl", "torch", "lightning", "torchrl", "tensordict", "gymnasium", "mujoco", "dm_control")


class Tracker(MLFlowLogger):
    """An MLflow run.

    Without an address, runs are kept in ``runs/mlflow.db`` and their files in ``runs/mlflow_artifacts``, both under the
    working folder: nothing has to be started. ``flowmatch-rl ui`` opens them.

    Args:
        experiment_name: Experiment the run belongs to; it is made if there is none.
        run_name: Name of the run; the task and the time at which it begins if None.
        tracking_uri: Address of a tracking server such as ``http://host:5000``; the environment variable
            ``MLFLOW_TRACKING_URI`` or the local file if None.
        log_checkpoints: Whether the last and the best checkpoint are kept as artifacts.
        run_id: An existing run to resume.
        tags: Tags of the run.

    Raises:
        UserError: If MLflow cannot use the local file.

    Attributes:
        address: Address of the tracking, of a server or of the local file.
    """

    def __init__(
        self,
        experiment_name: str = "flowmatch_rl",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        log_checkpoints: bool = True,
        run_id: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        # Table migrations of a new SQLite file are announced in dozens of lines.
        for name in ("alembic", "mlflow.store.db.utils", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # no page of warnings on machines without git
        chosen = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        check_address(chosen)
        self.address = chosen or local_address()
        artifacts = None
        if not chosen:
            artifacts = (Path(LOCAL_FOLDER).absolute() / "mlflow_artifacts").as_uri()
        open_database(self.address)
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=self.address,
            log_model=log_checkpoints,
            artifact_location=artifacts,
            run_id=run_id,
            tags=tags,
        )
        self._experiment, self._artifacts, self._is_new = experiment_name, artifacts, run_id is None
        self._is_named = run_name is not None
        self._default_name = time.strftime(RUN_TIME)
        self._opened = False

    def name_run(self, name: str) -> None:
        """Name the run that is about to begin, unless it has a name.

        MLflow would draw one at random: the same for all runs, since each of them sets the seed first.

        Args:
            name: The name.
        """
        self._default_name = name

    @property
    @rank_zero_experiment
    def experiment(self) -> MlflowClient:
        """Client of the tracking; the experiment and the run are made, or found, when it is first used.

        Raises:
            UserError: If the server does not answer, or the experiment or the run to resume was deleted.
        """
        if not self._opened:
            check_server(self.address)
            client = MlflowClient(self.address)
            if self._is_new:
                open_experiment(client, self._experiment, self._artifacts)
                self._choose_name()
            else:
                check_run(client, str(self._run_id))
            self._opened = True
        return super().experiment

    @property
    def page(self) -> str:
        """Address of the run's page: on the server, or on that which ``flowmatch-rl ui`` starts."""
        return run_page(self.address, str(self.experiment_id), self.run_id)

    def _choose_name(self) -> None:
        """Name the run unless the user does, or the process that started this one, as a comparison does."""
        started_with = json.loads(os.environ.get("MLFLOW_RUN_CONTEXT") or "{}")
        if not self._is_named and MLFLOW_RUN_NAME not in {**started_with, **(self.tags or {})}:
            self.tags = {**(self.tags or {}), MLFLOW_RUN_NAME: self._default_name}

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run: finished, failed, or killed if the user or the system ended it."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt | SIGTERMException):
            status = "KILLED"
        super().finalize(status)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Nothing: ``RunRecord`` logs the whole configuration, of which the module's part is a fraction."""


def check_address(address: str | None) -> None:
    """Raise if an address comes from a record, which passwords are left out of.

    Args:
        address: Address of the tracking; None for the local file.

    Raises:
        UserError: If its password was left out.
    """
    if address and HIDDEN in address:
        raise UserError(
            f"tracking_uri {address} lacks its password, which no configuration of a run keeps; give the whole address "
            "in MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD and leave both out"
        )


class RunRecord(Callback):
    """Writes down what a run was made of: configuration, seed, commit, versions and command; no passwords.

    Args:
        config: The whole configuration as YAML.
        parameters: The same, flat, for comparing runs.
        seed: Seed of the run.
    """

    def __init__(self, config: str, parameters: dict[str, Any], seed: int | None) -> None:
        self.config = redact(config)
        self.parameters = redact_all(parameters)
        self.seed = seed
        self._recorded = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml`` into the run's folder and everything into MLflow, once per run."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._recorded:
            return
        self._recorded = True
        path.write_text(self.config)
        for logger in trainer.loggers:
            if isinstance(logger, Tracker):
                self._record(logger, path)

    def _record(self, logger: Tracker, path: Path) -> None:
        client, run = logger.experiment, logger.run_id
        known = client.get_run(run).data
        tags = {"seed": str(self.seed), "commit": commit(), "command": " ".join(sys.argv), "run_dir": str(path.parent)}
        tags |= {f"version/{name}": metadata.version(name) for name in _VERSIONS}
        tags |= {"version/python": platform.python_version(), "threads": os.environ.get("OMP_NUM_THREADS", "")}
        for name, value in tags.items():
            client.set_tag(run, name, redact(value))
        client.log_artifact(run, str(path))
        # A parameter of a run can't be changed: those of a resumed run that differ stay as they were first.
        for name, value in self.parameters.items():
            if name not in known.params:
                client.log_param(run, name, str(value)[:500])


def commit() -> str:
    """Commit of the code that runs, with ``-dirty`` if files differ from it; ``unknown`` outside a checkout."""
    if recorded := os.environ.get("FLOWMATCH_RL_GIT_COMMIT"):
        return recorded
    folder = Path(__file__).parent
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.stdout.strip()
