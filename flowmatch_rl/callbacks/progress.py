"""The progress bar and the rates of a run, both in environment steps."""

import sys
import time
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class CountsEnvSteps(Protocol):
    """A data module that counts environment steps."""

    total_env_steps: int
    recent_returns: Any

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        ...


def counts(trainer: Trainer) -> CountsEnvSteps:
    """The data module of a run that counts environment steps."""
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]


class EnvStepProgress(ProgressBar):
    """A bar of environment steps with their rate, the losses and the latest evaluation return.

    Args:
        refresh_seconds: Seconds between two updates on a terminal; elsewhere a line is printed every 15 seconds.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self._interval = refresh_seconds if sys.stderr.isatty() else 15.0
        self._shown = 0.0
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, as on processes other than the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if self._enabled and trainer.is_global_zero:
            data = counts(trainer)
            self._bar = tqdm(
                total=data.total_env_steps, initial=data.env_steps, unit="step", desc="env steps", mininterval=0.0
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the bar, at most once per interval."""
        if self._bar is not None and time.monotonic() - self._shown > self._interval:
            self._show(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new evaluation return at once."""
        if self._bar is not None:
            self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._show(trainer)
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, trainer: Trainer) -> None:
        bar = self._bar
        assert bar is not None
        self._shown = time.monotonic()
        metrics = trainer.callback_metrics
        shown = {
            "return": "val/return_mean",
            "critic": "train/loss/critic",
            "policy": "train/loss/policy",
        }
        bar.set_postfix(
            {label: f"{float(metrics[name]):.4g}" for label, name in shown.items() if name in metrics}, False
        )
        bar.update(counts(trainer).env_steps - bar.n)


class Throughput(Callback):
    """Logs environment steps, gradient steps and episode returns of the training, at the logging interval."""

    def __init__(self) -> None:
        self._last: tuple[float, int, int] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave evaluations out of the rates."""
        self._last = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the rates since the last time."""
        interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if trainer.global_step % interval != 0 and self._last is not None:
            return
        data = counts(trainer)
        now = (time.perf_counter(), data.env_steps, trainer.global_step)
        if self._last is not None:
            seconds = now[0] - self._last[0]
            rates = {
                "train/env_steps_per_s": (now[1] - self._last[1]) / seconds,
                "train/gradient_steps_per_s": (now[2] - self._last[2]) / seconds,
            }
            if data.recent_returns:
                rates["train/episode_return"] = sum(data.recent_returns) / len(data.recent_returns)
            pl_module.log_dict(rates | {"step": float(data.env_steps)})
        self._last = now
