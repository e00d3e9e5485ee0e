"""Checkpoints: written atomically, the last and the best kept, and one more when a run is interrupted."""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.endings import SharedEnd
from flowmatch_rl.files import atomic_path, link_or_copy
from flowmatch_rl.ranks import in_memory

_STAYS = re.compile(r"step_(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and renames it, so that a killed process never leaves half a file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What Lightning made.
            path: Target on a local file system.
            storage_options: Must be None.

        Raises:
            TypeError: If storage options are given.
        """
        if storage_options is not None:
            raise TypeError(f"expected no storage_options, got {storage_options}")
        with atomic_path(path) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running what it holds, whatever ``weights_only`` says.

        The states of other processes are not read: they are mapped from the file.

        Args:
            path: Path of the file.
            map_location: Where its tensors go.
            weights_only: Not used.

        Raises:
            UserError: If it is not the path of a checkpoint, or it names a class that it may not name.
        """
        return in_memory(read_checkpoint(path, map_location, memory_map=True, parts=["state_dict"]))


class Checkpoints(ModelCheckpoint):
    """Keeps ``last.ckpt``, of the latest evaluation or interruption, ``best.ckpt``, and others if so configured.

    Args:
        dirpath: Folder; ``checkpoints`` under the run's folder if None.
        monitor: Metric that tells which is the best; the module's own, its attribute ``monitor``, if None. Where the
            module has none either, there is no ``best.ckpt``.
        mode: Whether the highest or the lowest value of ``monitor`` is the best.
        every_n_epochs: Evaluations between two checkpoints.
        keep_every: Evaluations between two checkpoints that stay, under a name with their gradient steps, such as
            ``step_5000.ckpt``; None for none.
        keep_most: Number of those that stay, the newest; None for all.

    Raises:
        UserError: If a number is below 1, or the number of what stays is given where nothing does.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        every_n_epochs: int = 1,
        keep_every: int | None = None,
        keep_most: int | None = None,
    ) -> None:
        check_range("[1, inf)", every_n_epochs=every_n_epochs, keep_every=keep_every, keep_most=keep_most)
        if keep_most is not None and keep_every is None:
            raise UserError(f"keep_most {keep_most} needs keep_every, the evaluations between two of them")
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_last=False,  # Lightning would write it together with the best one only
            auto_insert_metric_name=False,
            enable_version_counter=False,
            every_n_epochs=every_n_epochs,
        )
        self._interval, self._keep_every, self._keep_most = every_n_epochs, keep_every, keep_most
        self._last_saved_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder and the metric."""
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        own: Any = getattr(pl_module, "monitor", None) if self.monitor is None else None
        if own is not None:
            self.monitor, self.mode = own
            self.kth_value = torch.tensor(torch.inf if self.mode == "min" else -torch.inf)
        if self.monitor is None:
            self.save_top_k = 0
        super().setup(trainer, pl_module, stage)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of this evaluation alone: a sum over several would look like one that was broken off."""
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``best.ckpt`` if this is the best, and ``last.ckpt`` in any case."""
        super().on_validation_end(trainer, pl_module)
        evaluations = trainer.current_epoch + 1
        stays = self._keep_every is not None and evaluations % self._keep_every == 0
        due = stays or evaluations % self._interval == 0 or evaluations == trainer.max_epochs
        idle = trainer.sanity_checking or trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]
        if due and not idle and trainer.state.fn == TrainerFn.FITTING:
            self._save_last(trainer, stays)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``last.ckpt`` of a run that ended between two evaluations, or had none."""
        super().on_train_end(trainer, pl_module)
        trial: bool | int = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]
        if not trial and trainer.global_step > self._last_saved_step:
            self._save_last(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write ``last.ckpt`` when the user or the system ends a run; after an error the last good one stays.

        An error gets a note on how to resume.
        """
        if not self.dirpath:
            return
        # Processes write it together: those that were not ended together would wait for each other.
        ends = SharedEnd if trainer.world_size > 1 else KeyboardInterrupt | SIGTERMException
        if not isinstance(exception, ends):
            if kept := self._kept(trainer):
                exception.add_note(kept)
        elif trainer.state.fn == TrainerFn.FITTING and (trainer.training or trainer.validating):
            if trainer.validating:
                _mark_broken_off(trainer)
            try:
                self._save_last(trainer)
                rank_zero_only(print)(f"\ninterrupted; {_resumption(trainer, self.last_model_path)}")
            except RunError as error:
                words = [str(error), self._kept(trainer)]
                rank_zero_only(print)("\ninterrupted; no checkpoint was written: " + "; ".join(filter(None, words)))

    def _kept(self, trainer: Trainer) -> str:
        """How to resume from the ``last.ckpt`` of this run, or from what it resumed from, if there is one."""
        known = [str(path) for path in (self.last_model_path, trainer.ckpt_path) if path and Path(path).is_file()]
        return _resumption(trainer, known[0]) if known else ""

    def _save_last(self, trainer: Trainer, stays: bool = False) -> None:
        """Write ``last.ckpt``, and first under the name with its steps, which it shares, if it stays."""
        assert self.dirpath is not None
        folder = Path(self.dirpath)
        self.last_model_path = str(folder / "last.ckpt")
        written = folder / f"step_{trainer.global_step}.ckpt" if stays else folder / "last.ckpt"
        trainer.save_checkpoint(written)
        if stays and trainer.is_global_zero:
            link_or_copy(written, self.last_model_path)
            self._delete_oldest(folder)
        self._last_saved_step = trainer.global_step
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.after_save_checkpoint(self)

    def _delete_oldest(self, folder: Path) -> None:
        """Delete what stays no longer."""
        steps = {path: int(name[1]) for path in folder.iterdir() if (name := _STAYS.fullmatch(path.name))}
        if self._keep_most is not None:
            for path in sorted(steps, key=lambda path: steps[path])[: -self._keep_most]:
                path.unlink()


def _mark_broken_off(trainer: Trainer) -> None:
    """Let a run that is resumed repeat the evaluation: Lightning does where a batch of it was begun and not ended."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def _resumption(trainer: Trainer, path: str) -> str:
    """How to resume from a checkpoint: by the configuration that the command line keeps, if it does."""
    folder = Path(trainer.default_root_dir)
    config, last = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    command = f"flowmatch-rl fit -c {config} " if config.is_file() else ""
    return f"resume with {command}--ckpt_path {'last' if command and Path(path) == last else path}"
