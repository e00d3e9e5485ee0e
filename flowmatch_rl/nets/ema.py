"""Exponential moving averages of a network's weights."""

from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from flowmatch_rl.checks import check_range

Network = TypeVar("Network", bound=nn.Module)


def ema_copy(network: Network) -> Network:
    """Copy of a network that becomes its EMA network: in evaluation mode, its parameters without gradient."""
    return deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update_ema(network_ema: nn.Module, network: nn.Module, ema_decay: float) -> None:
    """Move an EMA network toward its network: ``ema = ema_decay * ema + (1 - ema_decay) * network``.

    Args:
        network_ema: EMA network, changed in place.
        network: The network it averages.
        ema_decay: Rate in [0, 1]; 0 copies the network, 1 changes nothing.
    """
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(network_ema.parameters()), list(network.parameters()), 1.0 - ema_decay
    )


def warmed_up_decay(ema_decay: float, updates: int) -> float:
    """Rate of an EMA network early in training, when it should forget the initial weights faster.

    ``min(ema_decay, (1 + updates) / (10 + updates))``.

    Args:
        ema_decay: Rate later in training, in [0, 1).
        updates: Updates of the network so far, at least 0.

    Returns:
        Rate in [0, 1).
    """
    return min(ema_decay, (1.0 + updates) / (10.0 + updates))


@dataclass(frozen=True)
class EmaSettings:
    """How an EMA network follows its network.

    Args:
        decay: Rate per update, in [0, 1). In temporal-difference learning it sets the pace: the error falls like
            ``exp(-(1 - decay) (1 - discount) updates)``.
        interval: Updates between two moves, at least 1; a move makes up for all of them. It also moves before an
            evaluation.
        warm_up: Whether it follows faster early on, see ``warmed_up_decay``; it would otherwise hold on to its random
            weights for a thousand updates.

    Raises:
        UserError: If a number is out of its range.
    """

    decay: float = 0.999
    interval: int = 1
    warm_up: bool = False

    def __post_init__(self) -> None:
        check_range("[0, 1)", decay=self.decay)
        check_range("[1, inf)", interval=self.interval)

    def update(self, network_ema: nn.Module, network: nn.Module, step: int, updates: int) -> None:
        """Move an EMA network toward its network.

        Args:
            network_ema: EMA network, changed in place.
            network: The network it averages.
            step: Updates of the network so far.
            updates: Updates since the last move.
        """
        decay = warmed_up_decay(self.decay, step) if self.warm_up else self.decay
        update_ema(network_ema, network, decay**updates)
