"""Rules for the temperature of a Boltzmann policy."""

import abc
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyState:
    """What is known of a policy when its temperature is tuned.

    Attributes:
        entropy: Mean entropy of its plain samples, before any choice among particles, nats, shape (), or None where
            it was not estimated.
        effective_samples: Mean share of the importance samples that carry weight, in (0, 1], shape (), or None.
        action_dim: Dimension A of the action.
    """

    entropy: Tensor | None
    effective_samples: Tensor | None
    action_dim: int


@dataclass(frozen=True)
class Temperature(abc.ABC):
    """A rule for the temperature, in units of the return."""

    @property
    @abc.abstractmethod
    def initial(self) -> float:
        """Temperature at the beginning, positive."""

    @property
    @abc.abstractmethod
    def needs_entropy(self) -> bool:
        """Whether the rule must be told the entropy of the policy."""

    @property
    @abc.abstractmethod
    def needs_samples(self) -> bool:
        """Whether the rule needs a policy that learns from importance samples, two or more per state."""

    @abc.abstractmethod
    def scheduled(self, env_steps: int) -> float | None:
        """Temperature after a number of environment steps, or None for a rule that learns it."""

    @abc.abstractmethod
    def surplus(self, state: PolicyState) -> Tensor | None:
        """How far the policy lies above the target, shape (); the temperature falls where it is positive.

        Args:
            state: The policy.

        Returns:
            Measured value minus target, or None for a rule that does not learn.

        Raises:
            ValueError: If what the rule needs is not known.
        """


@dataclass(frozen=True)
class ScheduledTemperature(Temperature, abc.ABC):
    """A temperature that depends on the environment step alone."""

    @property
    def needs_entropy(self) -> bool:
        """It is not needed."""
        return False

    @property
    def needs_samples(self) -> bool:
        """They are not needed."""
        return False

    def surplus(self, state: PolicyState) -> Tensor | None:
        """None: nothing is learned."""
        return None


@dataclass(frozen=True)
class TunedTemperature(Temperature, abc.ABC):
    """A temperature that is learned so that the policy meets a target.

    Args:
        start: Temperature at the beginning, positive.

    """

    start: float = 1.0

    @property
    def initial(self) -> float:
        """Temperature at the beginning."""
        return self.start

    def scheduled(self, env_steps: int) -> float | None:
        """None: it is learned."""
        return None


@dataclass(frozen=True)
class ConstantTemperature(ScheduledTemperature):
    """One temperature throughout.

    Args:
        value: Temperature, positive.

    Raises:
        ValueError: If it is not positive.
    """

    value: float = 0.02

    def __post_init__(self) -> None:
        _check_positive("temperature", self.value)

    @property
    def initial(self) -> float:
        """The temperature."""
        return self.value

    def scheduled(self, env_steps: int) -> float | None:
        """The temperature."""
        return self.value


@dataclass(frozen=True)
class AnnealedTemperature(ScheduledTemperature):
    """Goes from one temperature to another, evenly in its logarithm, and stays there.

    Args:
        start: Temperature at the beginning, positive.
        end: Temperature at the end, positive.
        env_steps: Environment steps that this takes, at least 1.

    Raises:
        ValueError: If a number is out of its range.
    """

    start: float
    end: float
    env_steps: int

    def __post_init__(self) -> None:
        _check_positive("start", self.start)
        _check_positive("end", self.end)
        if self.env_steps < 1:
            raise ValueError(f"env_steps must be at least 1, got {self.env_steps}")

    @property
    def initial(self) -> float:
        """Temperature at the beginning."""
        return self.start

    def scheduled(self, env_steps: int) -> float | None:
        """Temperature after a number of environment steps."""
        share = min(1.0, max(0.0, env_steps / self.env_steps))
        return math.exp((1.0 - share) * math.log(self.start) + share * math.log(self.end))


@dataclass(frozen=True)
class EntropyTemperature(TunedTemperature):
    """Tuned so that the policy has a target entropy.

    Args:
        start: Temperature at the beginning, positive.
        entropy_per_dimension: Target entropy of the actions per dimension, nats; a uniform action has log 2 = 0.69.

    Raises:
        ValueError: If ``start`` is not positive.

    Reference:
        Haarnoja et al., arXiv:1812.05905, whose target is -1 per dimension.
    """

    entropy_per_dimension: float = -1.0

    def __post_init__(self) -> None:
        _check_positive("start", self.start)

    @property
    def needs_entropy(self) -> bool:
        """It is needed."""
        return True

    @property
    def needs_samples(self) -> bool:
        """They are not needed."""
        return False

    def surplus(self, state: PolicyState) -> Tensor | None:
        """Entropy above the target, shape ()."""
        if state.entropy is None:
            raise ValueError("a temperature tuned to an entropy needs a policy whose entropy is estimated")
        return state.entropy - self.entropy_per_dimension * state.action_dim


@dataclass(frozen=True)
class SampleSizeTemperature(TunedTemperature):
    """Tuned so that a target share of the importance samples carries weight.

    At a temperature far below the spread of the values one sample takes all the weight, and the target of the policy is
    the best of a few guesses; far above it the values hardly matter.

    Args:
        start: Temperature at the beginning, positive.
        share: Target of the effective sample size over the number of samples, in (0, 1).

    Raises:
        ValueError: If a number is out of its range.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        _check_positive("start", self.start)
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share must lie in (0, 1), got {self.share}")

    @property
    def needs_entropy(self) -> bool:
        """It is not needed."""
        return False

    @property
    def needs_samples(self) -> bool:
        """They are needed."""
        return True

    def surplus(self, state: PolicyState) -> Tensor | None:
        """Effective share of the samples above the target, shape ()."""
        if state.effective_samples is None:
            raise ValueError("a temperature tuned to a sample size needs a policy learned from importance samples")
        return state.effective_samples - self.share


def temperature_loss(log_temperature: Tensor, surplus: Tensor) -> Tensor:
    """Loss whose gradient lowers the temperature where a policy lies above its target.

    Args:
        log_temperature: Logarithm of the temperature, shape ().
        surplus: Measured value minus target, shape ().

    Returns:
        Loss, shape ().
    """
    return log_temperature * surplus.detach()


def _check_positive(name: str, value: float) -> None:
    if not (value > 0.0 and torch.isfinite(torch.tensor(value))):
        raise ValueError(f"{name} must be positive, got {value}")
