"""Rules for the temperature of a Boltzmann policy."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowmatch_rl.checks import check_range


@dataclass(frozen=True)
class PolicyState:
    """Measurements of a policy that its temperature is tuned by.

    Attributes:
        entropy: Mean entropy of its plain samples, before any choice among particles, nats, shape (), or None where
            it was not estimated.
        effective_samples: Mean fraction of the importance samples that carry weight, in (0, 1], shape (), or None.
        action_dim: Dimension A of the action.
        divergence: Mean Kullback-Leibler divergence of what the policy learns from the behaviour, nats, shape (), or
            None where there is no behaviour.
    """

    entropy: Tensor | None
    effective_samples: Tensor | None
    action_dim: int
    divergence: Tensor | None = None


@dataclass(frozen=True)
class Temperature(abc.ABC):
    """A rule for the temperature, in units of the return."""

    @property
    @abc.abstractmethod
    def initial(self) -> float:
        """Temperature at the beginning, positive."""

    needs_entropy: ClassVar[bool]
    """Whether the rule takes the entropy of the policy."""

    needs_samples: ClassVar[bool]
    """Whether the rule needs a policy that learns from importance samples, two or more per state."""

    needs_divergence: ClassVar[bool] = False
    """Whether the rule needs a behaviour that the policy is measured against."""

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

    needs_entropy = False
    needs_samples = False

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
        check_range("(0, inf)", temperature=self.value)

    @property
    def initial(self) -> float:
        """The temperature."""
        return self.value

    def scheduled(self, env_steps: int) -> float | None:
        """The temperature."""
        return self.value


@dataclass(frozen=True)
class AnnealedTemperature(ScheduledTemperature):
    """Moves from one temperature to another, evenly in its logarithm, and stays there.

    Args:
        start: Temperature at the beginning, positive.
        end: Temperature at the end, positive.
        env_steps: Environment steps that this takes, at least 1; gradient steps where the policy learns from a data set
            (``PolicyData``), in its online phase too.

    Raises:
        ValueError: If a number is out of its range.
    """

    start: float
    end: float
    env_steps: int

    def __post_init__(self) -> None:
        check_range("(0, inf)", start=self.start, end=self.end)
        check_range("[1, inf)", env_steps=self.env_steps)

    @property
    def initial(self) -> float:
        """Temperature at the beginning."""
        return self.start

    def scheduled(self, env_steps: int) -> float | None:
        """Temperature after a number of environment steps."""
        progress = min(1.0, max(0.0, env_steps / self.env_steps))
        return math.exp((1.0 - progress) * math.log(self.start) + progress * math.log(self.end))


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

    needs_entropy = True
    needs_samples = False

    entropy_per_dimension: float = -1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", start=self.start)

    def surplus(self, state: PolicyState) -> Tensor | None:
        """Entropy above the target, shape ()."""
        if state.entropy is None:
            raise ValueError("a temperature tuned to an entropy needs a policy whose entropy is estimated")
        return state.entropy - self.entropy_per_dimension * state.action_dim


@dataclass(frozen=True)
class SampleSizeTemperature(TunedTemperature):
    """Tuned so that a target fraction of the importance samples carries weight.

    At a temperature far below the spread of the values one sample takes all the weight, and the target of the policy is
    the best of a few guesses; far above it the values hardly matter.

    Args:
        start: Temperature at the beginning, positive.
        fraction: Target of the effective sample size over the number of samples, in (0, 1).

    Raises:
        ValueError: If a number is out of its range.
    """

    needs_entropy = False
    needs_samples = True

    fraction: float = 0.2

    def __post_init__(self) -> None:
        check_range("(0, inf)", start=self.start)
        check_range("(0, 1)", fraction=self.fraction)

    def surplus(self, state: PolicyState) -> Tensor | None:
        """Effective fraction of the samples above the target, shape ()."""
        if state.effective_samples is None:
            raise ValueError("a temperature tuned to a sample size needs a policy learned from importance samples")
        return state.effective_samples - self.fraction


@dataclass(frozen=True)
class DivergenceTemperature(TunedTemperature):
    """Tuned so that the policy diverges from the behaviour by a target.

    It has no unit of the return: one target serves tasks whose values differ by orders of magnitude, where a weight
    such as that of flow Q-learning must be found for each.

    Args:
        start: Temperature at the beginning, positive.
        nats: Target of the divergence per state as 16 actions of the behaviour measure it, in (0, 2]. That is less
            than the divergence itself: .42 for .5 nats of a tilted normal distribution, .73 for 1 and .95 for 1.5. The
            best of N actions diverges by ``log N - 1 + 1 / N``.

    Raises:
        UserError: If a number is out of its range.
    """

    needs_entropy = False
    needs_samples = False
    needs_divergence = True

    nats: float = 1.0

    def __post_init__(self) -> None:
        check_range("(0, inf)", start=self.start)
        check_range("(0, 2]", nats=self.nats)

    def surplus(self, state: PolicyState) -> Tensor | None:
        """Divergence below the target, shape (): there the temperature may fall."""
        if state.divergence is None:
            raise ValueError("a temperature tuned to a divergence needs a policy with a behaviour")
        return self.nats - state.divergence


def temperature_loss(log_temperature: Tensor, surplus: Tensor) -> Tensor:
    """Loss whose gradient lowers the temperature where a policy lies above its target.

    Args:
        log_temperature: Logarithm of the temperature, shape ().
        surplus: Measured value minus target, shape ().

    Returns:
        Loss, shape ().
    """
    return log_temperature * surplus.detach()
