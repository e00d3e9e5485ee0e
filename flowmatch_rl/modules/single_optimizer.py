"""Training with one optimizer, shared by flows, occupancies and one-step models."""

import abc
from typing import Any

from flowmatch_rl.modules.learning_rate import use_stated_options
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.modules.watched import WatchedModule


class SingleOptimizer(WatchedModule, abc.ABC):
    """Trains with one optimizer, whose learning rate follows the run.

    Children set the attribute, and return the optimizer from ``configure_optimizers``.

    Attributes:
        optimizer: Settings of the optimizer.
    """

    optimizer: FlowOptimizer

    @abc.abstractmethod
    def after_update(self) -> None:
        """What follows an update, before it is logged."""

    def advice(self, network: str) -> str:
        """What to do about a network that diverges."""
        return "lower the learning rate"

    def start_training(self) -> None:
        """Give a resumed run the weight decay that it states."""
        stated: Any = self.configure_optimizers()
        use_stated_options(self.trainer.optimizers[0], stated, ["weight_decay"])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of this update."""
        rate = self.optimizer.rate(self.global_step, self.trainer.estimated_stepping_batches)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let follow what follows an update, and log at the logging interval."""
        self.after_update()
        if self.logs_after(self.global_step):
            self.log_dict(self.take_means(self.global_step), prog_bar=True)
