"""Training of a network whose EMA copy is what is evaluated, shared by flows, occupancies and cloned policies."""

import abc
from typing import Any

from torch import nn

from flowmatch_rl.modules.single_optimizer import SingleOptimizer
from flowmatch_rl.nets import EmaSettings

_EMA_STEP = "ema_step"


class EmaTraining(SingleOptimizer, abc.ABC):
    """Moves an EMA network toward the network that is trained.

    Children set the attribute.

    Attributes:
        ema: How the EMA network follows.
    """

    ema: EmaSettings

    def __init__(self) -> None:
        super().__init__()
        self._ema_step = 0  # of its last move
        self._loaded_ema_step: int | None = None  # of a checkpoint, until training begins

    @property
    @abc.abstractmethod
    def ema_pair(self) -> tuple[nn.Module, nn.Module]:
        """The EMA network, and the network that is trained."""

    def start_training(self) -> None:
        """As for any training; the EMA network of a resumed run has made its moves."""
        super().start_training()
        self._ema_step = self.global_step if self._loaded_ema_step is None else self._loaded_ema_step
        self._loaded_ema_step = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write when the EMA network moved last.

        Raises:
            RunError: If a network has diverged.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint[_EMA_STEP] = self._ema_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep when the EMA network moved last, if the checkpoint says so."""
        super().on_load_checkpoint(checkpoint)
        self._loaded_ema_step = checkpoint.get(_EMA_STEP)

    def after_update(self) -> None:
        """Move the EMA network."""
        is_last = self.trainer.is_last_batch or self.global_step == self.trainer.max_steps  # before an evaluation
        if self.global_step % self.ema.interval == 0 or is_last:
            self.ema.update(*self.ema_pair, self.global_step, self.global_step - self._ema_step)
            self._ema_step = self.global_step
