"""The family of networks that flows are made of, and what each of them offers."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from flowmatch_rl.shapes import append_dims

Activation = Literal["gelu", "gelu_tanh", "mish", "relu", "silu"]

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "mish": functional.mish,
    "relu": functional.relu,
    "silu": functional.silu,
}


class FlowNetwork(nn.Module, abc.ABC):
    """A network ``network(x, t, condition, duration)``, perhaps without condition or duration."""

    @abc.abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        """Velocity at x, or its average over the interval that begins there.

        Args:
            x: Samples, shape (*batch, D).
            t: Flow time in [0, 1]; its shape a prefix of the batch shape.
            condition: Context, shape (*batch, C), where a batch size of 1 is shared; None for a network without one.
            duration: Length of the interval in flow time, at least 0, its shape a prefix of the batch shape; None for
                the velocity of the moment.

        Returns:
            Velocity, shape (*batch, D).

        Raises:
            ValueError: If a shape does not fit, or the network takes no duration.
        """

    @abc.abstractmethod
    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        """The field at a fixed condition, whose features are then computed once for all evaluations.

        Args:
            condition: Context, shape (*batch, C), or None.

        Returns:
            Function of (x, t, None) and, for a network that takes one, the duration.

        Raises:
            ValueError: If the network takes a condition and there is none, or the other way round.
        """


@dataclass(frozen=True)
class Architecture(metaclass=abc.ABCMeta):
    """Shape of a flow's network.

    Parameters of this type are configured by ``class_path``. Their default must be a ``NamedArchitecture``: the command
    line forgets the class of any other dataclass that it finds as a default.
    """

    @abc.abstractmethod
    def build(self, sample_dim: int, condition_dim: int, takes_duration: bool = False) -> FlowNetwork:
        """Build the network for samples of dimension ``sample_dim`` given conditions of dimension ``condition_dim``.

        Args:
            sample_dim: Dimension D of the samples.
            condition_dim: Dimension C of the condition; 0 for none.
            takes_duration: Whether the network is told the duration of an interval.
        """


@dataclass(frozen=True)
class NamedArchitecture(Architecture, abc.ABC):
    """An architecture that configurations always name by its class, and never write field by field."""


def check_presence(condition: Tensor | None, wanted: bool) -> None:
    """Raise unless there is a condition where a network takes one, and none where it doesn't.

    Args:
        condition: Context, or None.
        wanted: Whether the network takes one.

    Raises:
        ValueError: If it is missing, or not wanted.
    """
    if (condition is not None) != wanted:
        got = None if condition is None else tuple(condition.shape)
        raise ValueError(f"this network takes {'a condition' if wanted else 'no condition'}, got {got}")


def check_shared_batch(condition: Tensor, x: Tensor) -> None:
    """Raise unless a condition has the batch of x, sizes of 1 being shared.

    Args:
        condition: Context or its features, shape (*batch, C).
        x: Samples, shape (*batch, D).

    Raises:
        ValueError: If the batches do not fit.
    """
    append_dims(condition[..., 0], like=x[..., 0])
    if condition.dim() != x.dim():
        raise ValueError(f"expected as many dimensions as x {tuple(x.shape)}, got condition {tuple(condition.shape)}")
