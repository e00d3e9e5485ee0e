"""The progress bar and the rates of a run, both in environment steps."""

import io
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from flowmatch_rl.publishing import publish
from flowmatch_rl.rounds import Round


class CountsEnvSteps(Protocol):
    """A data module that counts environment steps."""

    total_env_steps: int
    recent_returns: Any

    @property
    def env_steps(self) -> int:
        """Environment steps so far."""
        ...


def env_step_counter(trainer: Trainer) -> CountsEnvSteps | None:
    """The data module of a run if it counts environment steps."""
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    return data if hasattr(data, "env_steps") else None


class Progress(ProgressBar):
    """A bar of the training, in environment steps where the data counts them and else in updates, and of prediction.

    It shows the rate, the remaining time and the metrics that the module names in ``progress_metrics``, pairs of a
    label and a metric. Where standard error is no terminal, a line is printed at each evaluation in place of the bar,
    without control characters. What a module says of its metrics in words, by its method ``remarks``, is printed once,
    and again when it has ceased to hold meanwhile.

    Args:
        refresh_seconds: Seconds between two updates of the bar.
    """

    def __init__(self, refresh_seconds: float = 0.5) -> None:
        super().__init__()
        self._interval = refresh_seconds
        self._shown, self._printed = 0.0, -1
        self._warms_up = False
        self._bar: tqdm | None = None
        self._enabled = True
        self._remarks: frozenset[str] = frozenset()

    def disable(self) -> None:
        """Show nothing, as on processes other than the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        if self._enabled and trainer.is_global_zero:
            data = env_step_counter(trainer)
            total = _total_updates(trainer) if data is None else data.total_env_steps
            name = "updates" if data is None else "env steps"
            # Without smoothing the rate is the mean over the run: the remaining time counts evaluations in.
            self._bar = tqdm(total=total, unit="step", desc=name, mininterval=0.0, smoothing=0.0, file=_screen())
            self._warms_up, self._printed = True, -1

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the bar, at most once per interval; the rate counts from the first update, without the warm-up."""
        if self._bar is not None and self._warms_up:
            self._warms_up = False
            self._bar.initial = self._bar.n = self._steps(trainer)
            self._bar.unpause()
        if self._bar is not None and time.monotonic() - self._shown > self._interval and is_terminal():
            self._show(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new evaluation at once, and what the module says of it."""
        if self._bar is not None:
            self._show(trainer)
            self._remark(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._show(trainer)
            self._bar.close()
            self._bar = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar of batches."""
        if self._enabled and trainer.is_global_zero:
            batches = sum(count for count in trainer.num_predict_batches if count != float("inf"))
            self._bar = tqdm(total=int(batches), unit="batch", desc="predict", file=_screen())

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch."""
        if self._bar is not None:
            self._bar.update(1)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar, before the samples are written and what is said of them."""
        if self._bar is not None:
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
        known = getattr(trainer.lightning_module, "progress_metrics", ())
        shown = {label: f"{float(metrics[name]):.4g}" for label, name in known if name in metrics}
        bar.set_postfix(shown, False)
        bar.update(self._steps(trainer) - bar.n)
        if not is_terminal() and bar.n != self._printed:
            self._printed = bar.n
            print(_line(bar, shown), file=sys.stderr, flush=True)

    def _remark(self, trainer: Trainer) -> None:
        """Print what the module says of its metrics and did not say of the last evaluation."""
        module: Any = trainer.lightning_module
        remarks: dict[str, str] = getattr(module, "remarks", dict)()  # which a user's own module may not have
        for what, text in remarks.items():
            if what not in self._remarks:
                tqdm.write(f"flowmatch-rl: warning: {text}", file=sys.stderr)
        self._remarks = frozenset(remarks)

    def _steps(self, trainer: Trainer) -> int:
        """Steps so far, at most all: a run may take whole blocks of them, or be over when it is resumed."""
        total = None if self._bar is None else self._bar.total
        return _done(trainer) if total is None else min(_done(trainer), int(total))


class Throughput(Callback):
    """Logs the rates of gradient steps and, where the data counts them, of environment steps, and episode returns."""

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
        if interval == 0 or (self._last is not None and trainer.global_step // interval == self._last[2] // interval):
            return  # 0 stands for no logging
        data = env_step_counter(trainer)
        now = (time.perf_counter(), _done(trainer), trainer.global_step)
        if self._last is not None:
            seconds = now[0] - self._last[0]
            rates = {"train/gradient_steps_per_s": (now[2] - self._last[2]) / seconds}
            if data is not None:
                rates |= {"train/env_steps_per_s": (now[1] - self._last[1]) / seconds, "step": float(now[1])}
            if returns := getattr(trainer.datamodule, "recent_returns", ()):  # pyright: ignore[reportAttributeAccessIssue]
                rates["train/episode_return"] = sum(returns) / len(returns)
            if isinstance(batch, Round):
                publish(pl_module, rates | {"step": float(now[1])})
            else:
                pl_module.log_dict(rates)
        self._last = now


def is_terminal() -> bool:
    """Whether standard error is a terminal, on which a line can be drawn over."""
    return sys.stderr.isatty()


def _screen() -> TextIO:
    """Where a bar is drawn: on a terminal, or nowhere."""
    return sys.stderr if is_terminal() else io.StringIO()


def _line(bar: tqdm, shown: Mapping[str, str]) -> str:
    """What a bar shows, in words: how far the run is, its metrics, its rate and the time left."""
    state = bar.format_dict
    done, total, steps = state["n"], state["total"], state["n"] - state["initial"]
    of_all = "" if total is None or total == float("inf") else f" of {total:,.0f} ({done / total:.0%})"
    parts = [f"{done:,} {bar.desc.removesuffix(': ')}{of_all}", *(f"{label} {text}" for label, text in shown.items())]
    if steps > 0 and state["elapsed"] > 0.0:
        rate = steps / state["elapsed"]
        parts.append(f"{rate:.3g} per second")
        if of_all and done < total:
            parts.append(f"{bar.format_interval((total - done) / rate)} left")
    return ", ".join(parts)


def _total_updates(trainer: Trainer) -> float:
    """Gradient steps of the run, as the data counts them where its epochs differ in length."""
    own = getattr(trainer.datamodule, "total_updates", None)  # pyright: ignore[reportAttributeAccessIssue]
    return trainer.estimated_stepping_batches if own is None else own


def _done(trainer: Trainer) -> int:
    """Environment steps so far where they are counted, else updates."""
    data = env_step_counter(trainer)
    return trainer.global_step if data is None else data.env_steps
