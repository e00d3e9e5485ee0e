"""Units of a task that an actor-critic measures while it trains."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.modules.settings import Normalisation
from flowmatch_rl.nets import CriticEnsemble, ReturnUnit, RunningUnits, share_units

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
        normalisation: What is measured, and what for.
        observation_dim: Dimension S of the observation.
        discount: Discount per environment step, in [0, 1).

    Reference:
        Van Hasselt et al., arXiv:1602.07714, for a change of the unit of outputs that preserves them.
    """

    def __init__(self, normalisation: Normalisation, observation_dim: int, discount: float) -> None:
        super().__init__()
        self.observations = RunningUnits(observation_dim) if normalisation.observations else None
        self.rewards = RunningUnits(1) if normalisation.temperature or normalisation.values else None
        self.returns = ReturnUnit() if normalisation.values else None
        self.scales_temperature = normalisation.temperature
        self._discount = discount
        self._are_of_data = False

    @property
    def temperature_unit(self) -> Tensor | float:
        """Root mean square of the reward of a step so far, shape (); 1 if the temperature is in units of the return."""
        return self.rewards.root_mean_square[0] if self.rewards is not None and self.scales_temperature else 1.0

    def seen_by(self, network: Network) -> Network:
        """The network, which has these units from now on: of observations, and of returns if it is of critics.

        Args:
            network: A network that takes observations, or several in one module.

        Raises:
            UserError: If the network has units of its own.
        """
        if self.observations is not None:
            share_units(self.observations, network)
        if self.returns is not None:
            for critics in _critics(network):
                critics.share_unit(self.returns)
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

    @torch.no_grad()
    def follow_returns(self, networks: nn.Module, optimizers: Iterable[torch.optim.Optimizer], is_first: bool) -> None:
        """Change the unit of returns if the scale of the rewards has moved far from it. Waits for the device.

        Values stay what they are, to the last digit, and so do the steps that Adam takes in the hidden layers.

        Args:
            networks: Holds the critics that have the unit.
            optimizers: The optimizers that train them, Adam each.
            is_first: Whether the critics have not learned yet: their initial outputs then become those in the unit.
        """
        if self.returns is None or self.rewards is None:
            return
        wanted = float(self.rewards.root_mean_square) / (1.0 - self._discount)
        octaves = math.log2(wanted / float(self.returns.size))
        if abs(octaves) <= 1.0 and not is_first:
            return
        power = round(octaves)
        self.returns.size.mul_(2.0**power)
        if not is_first:
            for critics in _critics(networks):
                _scale_outputs(critics, 2.0**-power, optimizers)


def _critics(network: nn.Module) -> list[CriticEnsemble]:
    return [part for part in network.modules() if isinstance(part, CriticEnsemble)]


def _scale_outputs(critics: CriticEnsemble, factor: float, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Multiply the outputs of critics, and the moments of Adam as gradients of a squared error follow them."""
    for weight in critics.scaled_weights:
        weight.mul_(factor)
    last = {id(weight) for weight in critics.scaled_weights}
    for optimizer in optimizers:
        for weight in critics.parameters():
            state = optimizer.state.get(weight, {})
            # The error is of the last layer's output: its gradient is multiplied once, that of others twice.
            slope = factor if id(weight) in last else factor**2
            for name, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
                if name in state:
                    state[name].mul_(slope**power)


def _take(units: RunningUnits, moments: Tensor | None) -> bool:
    """Take moments of a data set, if there are some and none were taken before; whether there are some."""
    if moments is not None and units.is_empty:
        units.add(moments)
    return moments is not None
