"""What a run was made of, written down once: configuration, seed, commit, versions and command."""

import dataclasses
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flowmatch_rl.callbacks.run_logger import RunLogger
from flowmatch_rl.callbacks.tracking import Tracker
from flowmatch_rl.redaction import redact, redact_all

_VERSIONS = ("flowmatch_rl", "torch", "lightning", "torchrl", "tensordict", "gymnasium", "mujoco", "dm_control")
_UNKNOWN = "unknown"


class RunRecord(Callback):
    """Writes down what a run was made of: configuration, seed, commit, versions and command; no passwords.

    Args:
        config: The whole configuration as YAML.
        parameters: The same, flat, for comparing runs; those that are None are not tracked.
        seed: Seed of the run.
    """

    def __init__(self, config: str, parameters: dict[str, Any], seed: int | None) -> None:
        self.config = redact(config)
        self.parameters = redact_all(parameters)
        self.seed = seed
        self._recorded = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml`` into the run's folder, and track everything, once per run."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # pyright: ignore[reportAttributeAccessIssue]
            return
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._recorded:
            return
        self._recorded = True
        path.write_text(self.config)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                self._record(logger, path)
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        inputs = [_as_tracked(given, stage) for given in getattr(data, "inputs", [])]  # a user's own data may have none
        for tracker in [logger for logger in trainer.loggers if isinstance(logger, Tracker)] if inputs else []:
            for given in inputs:
                tracker.log_input(given)

    def _record(self, logger: RunLogger, path: Path) -> None:
        made_of = commit()
        tags = {"seed": str(self.seed), "commit": made_of, "command": " ".join(sys.argv), "run_dir": str(path.parent)}
        if made_of != _UNKNOWN:
            tags["mlflow.source.git.commit"] = made_of.removesuffix("-dirty")
        tags |= {f"version/{name}": metadata.version(name) for name in _VERSIONS}
        tags |= {"version/python": platform.python_version(), "threads": os.environ.get("OMP_NUM_THREADS", "")}
        logger.set_tags({name: redact(value) for name, value in tags.items()})
        logger.log_parameters({name: value for name, value in self.parameters.items() if value is not None})
        logger.log_file(path)


def _as_tracked(given: Any, stage: str) -> dict[str, Any]:
    """Attributes of an input by name; without a training nothing is an input of one."""
    values = redact_all(dataclasses.asdict(given))
    return values if stage == "fit" else values | {"context": "evaluation"}


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
        return _UNKNOWN
    return name.stdout.strip()
