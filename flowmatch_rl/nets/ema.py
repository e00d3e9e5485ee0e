"""Lagging copies of networks."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def lagging_copy(network: Network) -> Network:
    """A copy of a network whose parameters require no gradient, in evaluation mode."""
    return deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update_lagging_copy(copy: nn.Module, network: nn.Module, ema_decay: float) -> None:
    """Move a lagging copy toward its network: ``copy = ema_decay copy + (1 - ema_decay) network``.

    Args:
        copy: The lagging copy, changed in place.
        network: The network it follows.
        ema_decay: Rate in [0, 1]; 0 copies the network, 1 changes nothing.
    """
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(copy.parameters()), list(network.parameters()), 1.0 - ema_decay
    )
