"""Tracking in MLflow, by default in a local SQLite file."""

import logging
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

_VERSIONS = ("flowmatch_rl", "torch", "lightning", "torchrl", "tensordict", "gymnasium", "mujoco", "dm_control")


class Tracker(MLFlowLogger):
    """An MLflow run.

    Without an address, runs are kept in ``runs/mlflow.db`` and their files in ``runs/mlflow_artifacts``, both under the
    working folder: nothing has to be started. ``make ui`` opens them.

    Args:
        experiment_name: Experiment the run belongs to.
        run_name: Name of the run; MLflow makes one up if None.
        tracking_uri: Address of a tracking server such as ``http://host:5000``; the environment variable
            ``MLFLOW_TRACKING_URI`` or the local file if None.
        log_checkpoints: Whether the last and the best checkpoint are kept as artifacts.
        run_id: An existing run to resume.
        tags: Tags of the run.
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
        tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if tracking_uri is None:
            folder = Path("runs").absolute()
            folder.mkdir(exist_ok=True)
            tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
            artifacts = (folder / "mlflow_artifacts").as_uri()
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            tracking_uri=tracking_uri,
            log_model=log_checkpoints,
            artifact_location=artifacts,
            run_id=run_id,
            tags=tags,
        )

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run: finished, failed, or killed if the user or the system ended it."""
        if isinstance(sys.exc_info()[1], KeyboardInterrupt | SIGTERMException):
            status = "KILLED"
        super().finalize(status)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Nothing: ``RunRecord`` logs the whole configuration, of which the module's part is a fraction."""


class RunRecord(Callback):
    """Writes down what a run was made of: configuration, seed, commit, versions and command.

    Args:
        config: The whole configuration as YAML.
        parameters: The same, flat, for comparing runs.
        seed: Seed of the run.
    """

    def __init__(self, config: str, parameters: dict[str, Any], seed: int | None) -> None:
        self.config = config
        self.parameters = parameters
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
            client.set_tag(run, name, value)
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
