"""Random numbers on the device of a model, from a generator that may be on another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmatch_rl.samplers import Draw


def draw_normal(shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise.

    Args:
        shape: Its shape.
        device: Its device.
        generator: Source of randomness, on any device; the global one of ``device`` if None.

    Returns:
        Noise, float32.
    """
    home = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=home).to(device)


def normal_like(generator: torch.Generator | None) -> Draw:
    """A function that draws standard normal noise of the shape, type and device of its argument."""

    def draw(like: Tensor) -> Tensor:
        return draw_normal(like.shape, like.device, generator).to(like)

    return draw


def draw_uniform(shape: Sequence[int], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in [0, 1).

    Args:
        shape: Its shape.
        device: Its device.
        generator: Source of randomness, on any device; the global one of ``device`` if None.

    Returns:
        Noise, float32.
    """
    home = device if generator is None else generator.device
    return torch.rand(tuple(shape), generator=generator, device=home).to(device)
