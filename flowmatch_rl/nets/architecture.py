"""Interface of the networks of flows, and of the dataclasses that configure them."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmatch_rl.objectives import derivative_along_flow
from flowmatch_rl.shapes import append_dims

Activation = Literal["gelu", "gelu_tanh", "mish", "relu", "silu"]


def gelu_tanh(x: Tensor) -> Tensor:
    """The Gaussian error linear unit with the approximation by tanh.

    On a CPU and without gradient it is written as x sigmoid(2 u) in place of x (1 + tanh(u)) / 2, which is the same
    function in half the time: PyTorch's tanh takes three times as long as its sigmoid.

    Args:
        x: Any shape.

    Returns:
        Shape of x.

    Reference:
        Hendrycks and Gimpel, arXiv:1606.08415.
    """
    # Half precision would round every step; a gradient would keep them all in memory.
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return functional.gelu(x, approximate="tanh")
    twice_u = (x * x).mul_(_GELU_CUBIC).add_(_GELU_LINEAR).mul_(x)
    return twice_u.sigmoid_().mul_(x)


_GELU_LINEAR = 2.0 * (2.0 / math.pi) ** 0.5
_GELU_CUBIC = 0.044715 * _GELU_LINEAR

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "mish": functional.mish,
    "relu": functional.relu,
    "silu": functional.silu,
}

DIRECTIONAL_DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "mish": torch.ops.aten.mish_backward,
    "relu": partial(torch.ops.aten.threshold_backward, threshold=0),
    "silu": torch.ops.aten.silu_backward,
}
"""Derivatives of the activations at ``x``, called as ``derivative(direction, x)``: those of functions of single entries
are their gradients. A graph of ``torch.compile`` holds them, and no call of ``torch.autograd.grad``."""


class FlowNetwork(nn.Module, abc.ABC):
    """A network ``network(x, t, condition, duration)``; condition and duration are optional.

    Attributes:
        to_velocity: The last layer.
    """

    to_velocity: nn.Linear

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        """Velocity at x, or its average over the interval that begins there.

        Args:
            x: Samples, shape (*batch, D).
            t: Flow time in [0, 1]; its shape a prefix of the batch shape.
            condition: Context, shape (*batch, C), where a batch size of 1 is shared; None for a network without one.
            duration: Length of the interval in flow time, at least 0, its shape a prefix of the batch shape; None for
                the instantaneous velocity.

        Returns:
            Velocity, shape (*batch, D).

        Raises:
            ValueError: If a shape does not fit, or the network takes no duration.
        """
        return self.bind(condition)(x, t, None, duration)

    def derivative_along_flow(
        self, x: Tensor, velocity: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None
    ) -> Tensor:
        """Derivative of the average velocity in the direction (velocity, 1, -1) of (x, t, duration), without gradient.

        A network may write it out: a forward-mode pass takes several times as long as the few products of a small
        batch, since each sum of a tensor that has a derivative and one that has none takes a long way.

        Args:
            x: Samples, shape (B, D).
            velocity: Velocity there, shape (B, D).
            t: Flow time, shape (B,).
            duration: Length of the interval, shape (B,).
            condition: Context, shape (B, C), or None.

        Returns:
            Derivative, shape (B, D).
        """
        return derivative_along_flow(lambda x, t, length: self(x, t, condition, length), x, velocity, t, duration)

    def begin_at_zero(self) -> None:
        """Set the last layer to zero, so that the network is 0 everywhere until it is trained."""
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)

    @abc.abstractmethod
    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        """The field at a fixed condition, whose features are computed once for all evaluations.

        Args:
            condition: Context, shape (*batch, C), or None.

        Returns:
            Function of (x, t, None) and, for a network that takes one, the duration.

        Raises:
            ValueError: If the network takes a condition and there is none, or the reverse.
        """


@dataclass(frozen=True)
class Architecture(metaclass=abc.ABCMeta):
    """Configuration of a flow's network.

    Parameters of this type are configured by ``class_path``. Their default must be a ``NamedArchitecture``: the command
    line loses the class of any other dataclass used as a default.
    """

    @abc.abstractmethod
    def build(self, sample_dim: int, condition_dim: int, takes_duration: bool = False) -> FlowNetwork:
        """Build the network for samples of dimension ``sample_dim`` given conditions of dimension ``condition_dim``.

        Args:
            sample_dim: Dimension D of the samples.
            condition_dim: Dimension C of the condition; 0 for none.
            takes_duration: Whether the network takes the duration of an interval.
        """


@dataclass(frozen=True)
class NamedArchitecture(Architecture, abc.ABC):
    """An architecture that is always configured by its class, never field by field."""


def check_presence(condition: Tensor | None, expected: bool) -> None:
    """Raise unless a condition is given exactly if the network takes one.

    Args:
        condition: Context, or None.
        expected: Whether the network takes one.

    Raises:
        ValueError: If it is missing or unexpected.
    """
    if (condition is not None) != expected:
        got = None if condition is None else tuple(condition.shape)
        raise ValueError(f"this network takes {'a condition' if expected else 'no condition'}, got {got}")


def check_shared_batch(condition: Tensor, x: Tensor) -> None:
    """Raise unless a condition has the batch shape of x, where a size of 1 is shared.

    Args:
        condition: Context or its features, shape (*batch, C).
        x: Samples, shape (*batch, D).

    Raises:
        ValueError: If the batches do not fit.
    """
    append_dims(condition[..., 0], like=x[..., 0])
    if condition.dim() != x.dim():
        raise ValueError(f"expected as many dimensions as x {tuple(x.shape)}, got condition {tuple(condition.shape)}")
