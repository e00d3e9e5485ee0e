"""Units of a task that an actor-critic measures while it trains."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from torch import Tensor, nn

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.modules.settings import Normalisation
from flowmatch_rl.nets import RunningUnits, share_units

Network = TypeVar("Network", bound=nn.Module)


class MeasuredData(Protocol):
    """Data that may be a data set; its moments are count, mean and squared deviations of each column."""

    @property
    def observation_moments(self) -> Tensor | None:
        """Moments of all observations of a data set, shape (3, S); None without one."""
        ...

    @property
    def reward_moments(self) -> Tensor | None:
        """Moments of all rewards of a data set, shape (3, 1); None without one."""
        ...


class TaskUnits(nn.Module):
    """Measures the units of observations, which the networks of an actor-critic share, and the scale of the rewards.

    Args:
        normalisation: What is measured.
        observation_dim: Dimension S of the observation.
    """

    def __init__(self, normalisation: Normalisation, observation_dim: int) -> None:
        super().__init__()
        self.observations = RunningUnits(observation_dim) if normalisation.observations else None
        self.rewards = RunningUnits(1) if normalisation.temperature else None
        self._are_of_data = False

    @property
    def reward_scale(self) -> Tensor | float:
        """Root mean square of the reward of a step so far, shape (); 1 if it is not measured, or none was yet."""
        return 1.0 if self.rewards is None else self.rewards.root_mean_square[0]

    def seen_by(self, network: Network) -> Network:
        """The network, which sees observations in these units from now on, if there are any.

        Args:
            network: A network that takes observations, or several in one module.

        Raises:
            UserError: If the network has units of its own.
        """
        if self.observations is not None:
            share_units(self.observations, network)
        return network

    def take(self, data: MeasuredData | None) -> None:
        """Take the units of a whole data set, which then stay as they are; those of a checkpoint stay too.

        Args:
            data: Where the transitions come from; None if that is not known.
        """
        if self.observations is not None and data is not None:
            self._are_of_data = _take(self.observations, data.observation_moments)
        if self.rewards is not None and data is not None:
            self._are_of_data = _take(self.rewards, data.reward_moments)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise unless a module that these units are a part of, by the name ``units``, has measured the same.

        Args:
            state: State of the module.

        Raises:
            UserError: If it measured other units.
        """
        saved = {key.split(".")[1] for key in state if key.startswith("units.")}
        own = {key.split(".")[0] for key in self.state_dict()}
        if saved != own:
            names = (", ".join(sorted(measured)) or "nothing" for measured in (saved, own))
            raise UserError(
                "the checkpoint has normalised {}, this run normalises {}; see normalisation".format(*names)
            )

    def measure(self, transition: Transition, gather: Callable[[Tensor], Tensor] | None) -> None:
        """Count a batch of collected transitions.

        Args:
            transition: The batch.
            gather: Collects a tensor from all processes in leading dimensions; None for one process.
        """
        if self._are_of_data:
            return
        if self.observations is not None:
            self.observations.update(transition.observation, gather)
        if self.rewards is not None:
            self.rewards.update(transition.reward[:, None], gather)


def _take(units: RunningUnits, moments: Tensor | None) -> bool:
    """Take moments of a data set, if there are some and none were taken before; whether there are some."""
    if moments is not None and units.is_empty:
        units.add(moments)
    return moments is not None
