"""Training of a network whose EMA copy is what is evaluated, shared by flows, occupancies and cloned policies."""

import abc

from torch import nn

from flowmatch_rl.modules.single_optimizer import SingleOptimizer
from flowmatch_rl.nets import EmaSettings


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

    @property
    @abc.abstractmethod
    def ema_pair(self) -> tuple[nn.Module, nn.Module]:
        """The EMA network, and the network that is trained."""

    def on_train_start(self) -> None:
        """As for any training; the EMA network of a resumed run has made its moves."""
        super().on_train_start()
        self._ema_step = self.global_step

    def after_update(self) -> None:
        """Move the EMA network."""
        is_last = self.trainer.is_last_batch or self.global_step == self.trainer.max_steps  # before an evaluation
        if self.global_step % self.ema.interval == 0 or is_last:
            self.ema.update(*self.ema_pair, self.global_step, self.global_step - self._ema_step)
            self._ema_step = self.global_step
