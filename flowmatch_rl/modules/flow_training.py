"""Training of a flow, shared by generative models and occupancies."""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from flowmatch_rl.models import Flow, GenerativeModel, Occupancy
from flowmatch_rl.modules.learning_rate import use_stated_options
from flowmatch_rl.modules.quick_hooks import QuickHooks
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.modules.watched import WatchedModule
from flowmatch_rl.nets import EmaSettings
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.seeds import process_seed

Model = TypeVar("Model", GenerativeModel, Occupancy)


class FlowTraining(QuickHooks, WatchedModule, abc.ABC, Generic[Model]):
    """Trains one flow with one optimizer, and keeps a model of its EMA copy that is evaluated.

    Children set the attributes.

    Attributes:
        flow: The flow that is trained.
        model: The model of the EMA flow.
        optimizer: Its optimizer.
        ema: How the EMA flow follows it.
    """

    flow: Flow
    model: Model
    optimizer: FlowOptimizer
    ema: EmaSettings

    loss_names: ClassVar = {"flow": "train/loss"}

    def __init__(self) -> None:
        super().__init__()
        self._ema_step = 0  # of its last move

    @abc.abstractmethod
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch; adds ``train/loss`` to the means."""

    @property
    def flow_ema(self) -> Flow:
        """The EMA flow."""
        return self.model.flow

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """The flow that is trained, and the model of its EMA copy."""
        return {"flow": self.flow.parameters(), "model of the EMA flow": self.model.parameters()}

    def advice(self, network: str) -> str:
        """What to do about a flow that diverges."""
        return "lower the learning rate"

    @property
    def schema(self) -> TableSchema:
        """Columns of the samples and of what they are conditioned on, with their units."""
        return self.model.schema

    def on_fit_start(self) -> None:
        """Give each process noise of its own; weights were built from the common seed."""
        torch.manual_seed(process_seed(torch.initial_seed(), self.global_rank))

    def on_train_start(self) -> None:
        """Give a resumed run the weight decay that it states, and other noise than it began with."""
        use_stated_options(self.trainer.optimizers[0], self.configure_optimizers())
        self._ema_step = self.global_step
        if self.global_step:
            torch.manual_seed(process_seed(torch.initial_seed(), step=self.global_step))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of this update."""
        rate = self.optimizer.rate(self.global_step, self.trainer.estimated_stepping_batches)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the EMA flow, and log at the logging interval."""
        is_last = self.trainer.is_last_batch or self.global_step == self.trainer.max_steps  # before an evaluation
        if self.global_step % self.ema.interval == 0 or is_last:
            self.ema.update(self.flow_ema, self.flow, self.global_step, self.global_step - self._ema_step)
            self._ema_step = self.global_step
        if self.logs_after(self.global_step):
            self.log_dict(self.take_means(self.global_step), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the flow's network."""
        return self.optimizer.build(self.flow.parameters())
