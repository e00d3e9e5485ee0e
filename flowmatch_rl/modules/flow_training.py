"""Training of a flow, shared by generative models and occupancies."""

import abc
from collections.abc import Iterable, Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from flowmatch_rl.models import Flow, GenerativeModel, Occupancy
from flowmatch_rl.modules.single_optimizer import SingleOptimizer
from flowmatch_rl.nets import EmaSettings
from flowmatch_rl.schema import TableSchema

Model = TypeVar("Model", GenerativeModel, Occupancy)


class FlowTraining(SingleOptimizer, abc.ABC, Generic[Model]):
    """Trains one flow with one optimizer, and keeps a model of its EMA copy that is evaluated.

    Children set the attributes.

    Attributes:
        flow: The flow that is trained.
        model: The model of the EMA flow.
        ema: How the EMA flow follows it.
    """

    flow: Flow
    model: Model
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

    @property
    def schema(self) -> TableSchema:
        """Columns of the samples and of what they are conditioned on, with their units."""
        return self.model.schema

    def on_train_start(self) -> None:
        """As for any training; the EMA flow of a resumed run has made its moves."""
        super().on_train_start()
        self._ema_step = self.global_step

    def after_update(self) -> None:
        """Move the EMA flow."""
        is_last = self.trainer.is_last_batch or self.global_step == self.trainer.max_steps  # before an evaluation
        if self.global_step % self.ema.interval == 0 or is_last:
            self.ema.update(self.flow_ema, self.flow, self.global_step, self.global_step - self._ema_step)
            self._ema_step = self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the flow's network."""
        return self.optimizer.build(self.flow.parameters())
