"""What all modules that train have in common: noise, running means, resumption, and an end where they diverge."""

import abc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from flowmatch_rl.checks import RunError
from flowmatch_rl.endings import settle_ending, share_ending
from flowmatch_rl.generators import read_generators, write_generators
from flowmatch_rl.modules.quick_hooks import QuickHooks
from flowmatch_rl.modules.running_means import RunningMeans
from flowmatch_rl.ranks import gather_states, own_state, states_of_ranks, together
from flowmatch_rl.seeds import process_seed

_RESUMPTION = "resumption"


class Carried(Protocol):
    """What is carried from one update to the next, beside weights and generators."""

    def state_dict(self) -> dict[str, Any]:
        """It, as checkpoints hold it."""
        ...

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from a state, on the device of what will follow."""
        ...


class WatchedModule(QuickHooks, LightningModule, abc.ABC):
    """Ends a run whose losses or weights are no longer finite, before it is evaluated or a checkpoint is written.

    The losses are checked at the logging interval, losses and weights before an evaluation and a checkpoint.

    Checkpoints hold the states of the global generators and the means of every process, so that a resumed run of as
    many processes draws the numbers that it would have drawn without the interruption.

    Children that override a hook of this class call it.

    Attributes:
        loss_names: Metric that is the loss of each network, by the name of the network.
        means: Means of the metrics since the last logging.
    """

    loss_names: ClassVar[Mapping[str, str]]

    def __init__(self) -> None:
        super().__init__()
        self.means = RunningMeans(self.loss_names.values())
        self._common_seed = 0
        self._resumption: dict[str, Any] | None = None  # of the checkpoint, until training begins

    @property
    def carried(self) -> Mapping[str, Carried]:
        """What is carried from one update to the next, by name; a resumed run continues with it."""
        return {"means": self.means}

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

    def start_training(self) -> None:
        """What is done before the first update of a run, or of a resumed one."""

    def on_fit_start(self) -> None:
        """Give each process noise of its own; weights were built from the common seed."""
        self._common_seed = self.trainer.strategy.broadcast(torch.initial_seed())
        torch.manual_seed(process_seed(self._common_seed, self.global_rank))

    def on_train_start(self) -> None:
        """Make ready for training, and put a resumed run into the state of its checkpoint at the last moment."""
        if self.trainer.world_size > 1:
            share_ending(self._end_others)
        self.start_training()
        resumption, self._resumption = self._resumption, None
        if self.trainer.ckpt_path is None:
            return
        saved = 0 if resumption is None else len(states_of_ranks(resumption))
        if resumption is not None and saved == self.trainer.world_size:
            own = own_state(resumption, self.global_rank)
            for name, part in self.carried.items():
                part.load_state_dict(own["carried"][name], self.device)
            self.trainer.callback_metrics.update(own["metrics"])
            write_generators(own["generators"])
        elif self.global_step:
            torch.manual_seed(process_seed(self._common_seed, self.global_rank, self.global_step))
            change = f"it ran in {saved} processes, now in {self.trainer.world_size}"
            why = change if saved else "the checkpoint holds no generators"
            rank_zero_warn(f"the resumed run draws other random numbers than without the interruption: {why}")

    def on_train_end(self) -> None:
        """Leave signals alone."""
        settle_ending()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what a resumed run continues with, of all processes.

        Raises:
            RunError: If a network has diverged.
        """
        trainer = self._trainer
        if trainer is None:
            self.check_finite()
            return
        agree = trainer.strategy.reduce_boolean_decision
        with together(agree):
            self.check_finite()
        metrics = {name: value.cpu() for name, value in trainer.callback_metrics.items()}
        carried = {name: part.state_dict() for name, part in self.carried.items()}
        checkpoint[_RESUMPTION] = {"generators": read_generators(), "carried": carried, "metrics": metrics}
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        own = [name for name in (_RESUMPTION, type(data).__qualname__) if name in checkpoint]
        gather_states(checkpoint, own, Path(trainer.default_root_dir), self.global_rank, trainer.world_size, agree)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run continues with; checkpoints of version 0.2.0 hold nothing of it."""
        self._resumption = checkpoint.get(_RESUMPTION)

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

    def _end_others(self, number: int) -> None:
        """Send a signal to the processes that this one has started."""
        launcher: Any = self.trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(number)

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
