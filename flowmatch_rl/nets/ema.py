"""Exponential moving averages of a network's weights."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

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
