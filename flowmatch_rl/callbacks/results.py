"""The result of a finished run, as a file: what its final evaluation measured."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flowmatch_rl.callbacks.artifacts import writes_files
from flowmatch_rl.callbacks.progress import env_step_counter
from flowmatch_rl.callbacks.run_record import commit
from flowmatch_rl.devices import device_name
from flowmatch_rl.files import RESULT, write_json


class RunResult(Callback):
    """Writes ``result.json`` when a run has been trained to its end and tested: its presence says that a run is done.

    It holds the task (label of the data), the environment steps (null where none were taken), the gradient steps, the
    range of returns that the environment states (or null), the commit, the precision with the device, and the metrics
    of the test. The file is renamed into place, so that it is whole or absent; a run that is resumed loses it until it
    is done again.
    """

    def __init__(self) -> None:
        self._trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take away the result of an earlier training in this folder."""
        if writes_files(trainer):
            _path(trainer).unlink(missing_ok=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that training came to its end."""
        self._trained = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file at the end of a test, also of one without batches, if it follows a training."""
        if stage != "test" or not (self._trained and writes_files(trainer)):
            return
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        counter = env_step_counter(trainer)
        result = {
            "task": getattr(data, "label", type(data).__name__),
            "env_steps": getattr(data, "online_env_steps", None) if counter is None else counter.env_steps,
            "gradient_steps": trainer.global_step,
            "return_range": getattr(data, "return_range", None),
            "commit": commit(),
            "arithmetic": arithmetic(trainer),
            "metrics": {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")
            },
        }
        write_json(_path(trainer), result)


def arithmetic(trainer: Trainer) -> str:
    """Precision and device of a run, which its speed depends on."""
    return f"{trainer.precision} on {device_name(trainer.strategy.root_device.type)}"


def _path(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / RESULT
