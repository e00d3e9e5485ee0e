"""What all modules that train have in common: running means of their metrics, and an end where they diverge."""

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from flowmatch_rl.checks import RunError
from flowmatch_rl.modules.running_means import RunningMeans


class WatchedModule(LightningModule, abc.ABC):
    """Ends a run whose losses or weights are no longer finite, before it is evaluated or a checkpoint is written.

    The losses are checked at the logging interval, losses and weights before an evaluation and a checkpoint. A child
    calls ``check_finite`` from its ``on_save_checkpoint``.

    Attributes:
        loss_names: Metric that is the loss of each network, by the name of the network.
        means: Means of the metrics since the last logging.
    """

    loss_names: ClassVar[Mapping[str, str]]

    def __init__(self) -> None:
        super().__init__()
        self.means = RunningMeans(self.loss_names.values())

    @property
    @abc.abstractmethod
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """What is trained, by name: the weights of each network."""

    @abc.abstractmethod
    def advice(self, network: str) -> str:
        """What to do about a network that diverges.

        Args:
            network: Its name.
        """

    def on_validation_start(self) -> None:
        """End a diverged run before it is evaluated."""
        self.check_finite()

    def on_test_start(self) -> None:
        """Refuse to evaluate weights that are not finite."""
        self.check_finite()

    def on_predict_start(self) -> None:
        """Refuse to evaluate weights that are not finite."""
        self.check_finite()

    def check_finite(self) -> None:
        """Raise unless all losses since the last logging and all weights are finite. Waits for the device.

        Raises:
            RunError: If one is not; names the network that was the first.
        """
        updates = self.global_step
        self._check_losses(updates)
        networks = {name: list(weights) for name, weights in self.networks.items()}
        finite = torch.stack([weight.isfinite().all() for weights in networks.values() for weight in weights]).tolist()
        bad = [name for name, weights in networks.items() if not all([finite.pop(0) for _ in weights])]
        if bad:
            raise RunError(
                f"the weights of the {_joined(bad)} are not finite after {updates} updates; {self._advice(bad)}"
            )

    def logs_after(self, updates: int) -> bool:
        """Whether to log after a number of updates: at the logging interval only, since each costs half a ms."""
        interval: int = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        return interval > 0 and updates % interval == 0  # 0 stands for no logging

    def known_to_all(self, metrics: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """The metrics that every process has, whose mean may be logged: to wait for one that some lack is for ever.

        Args:
            metrics: Metrics of this process.
            names: Those that a process may have.
        """
        held = torch.tensor([name in metrics for name in names], device=self.device)
        everywhere = torch.as_tensor(self.all_gather(held)).reshape(-1, len(names)).all(0)
        return {name: metrics[name] for name, is_known in zip(names, everywhere.tolist(), strict=True) if is_known}

    def take_means(self, updates: int) -> dict[str, Tensor]:
        """Means of the metrics since the last logging, by name.

        Args:
            updates: Number of the last update that they are of.

        Raises:
            RunError: If a loss is not finite.
        """
        self._check_losses(updates)
        return self.means.take()

    def _check_losses(self, updates: int) -> None:
        """Raise unless all losses since the last logging are finite."""
        ages = self.means.ages_not_finite()
        first = max(ages.values(), default=None)
        if first is None:
            return
        bad = [name for name, loss in self.loss_names.items() if ages.get(loss) == first]
        noun = "loss of the" if len(bad) == 1 else "losses of the"
        verb = "is" if len(bad) == 1 else "are"
        raise RunError(
            f"the {noun} {_joined(bad)} {verb} not finite since update {updates - first}; {self._advice(bad)}"
        )

    def _advice(self, networks: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(self.advice(name) for name in networks))


def _joined(names: list[str]) -> str:
    return " and the ".join(names)
