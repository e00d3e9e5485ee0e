"""Training of a flow, shared by generative models and occupancies."""

import abc
from collections.abc import Iterable, Mapping
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from flowmatch_rl.models import Flow, GenerativeModel, Occupancy
from flowmatch_rl.modules.ema_training import EmaTraining
from flowmatch_rl.schema import TableSchema

Model = TypeVar("Model", GenerativeModel, Occupancy)


class FlowTraining(EmaTraining, abc.ABC, Generic[Model]):
    """Trains one flow with one optimizer, and keeps a model of its EMA copy that is evaluated.

    Children set the attributes.

    Attributes:
        flow: The flow that is trained.
        model: The model of the EMA flow.
    """

    flow: Flow
    model: Model

    loss_names: ClassVar = {"flow": "train/loss"}

    @abc.abstractmethod
    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of a batch; adds ``train/loss`` to the means."""

    @property
    def flow_ema(self) -> Flow:
        """The EMA flow."""
        return self.model.flow

    @property
    def ema_pair(self) -> tuple[Flow, Flow]:
        """The EMA flow, and the flow that is trained."""
        return self.flow_ema, self.flow

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """The flow that is trained, and the model of its EMA copy."""
        return {"flow": self.flow.parameters(), "model of the EMA flow": self.model.parameters()}

    @property
    def schema(self) -> TableSchema:
        """Columns of the samples and of what they are conditioned on, with their units."""
        return self.model.schema

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the flow's network."""
        return self.optimizer.build(self.flow.parameters())
