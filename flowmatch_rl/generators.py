"""The global generators of random numbers of a process: their states, as a checkpoint may hold them."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Seed the global generators of PyTorch, NumPy and Python.

    Args:
        seed: In [0, 2^32).
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def read_generators() -> dict[str, Any]:
    """States of the global generators of PyTorch, on the CPU and on each GPU in use, of NumPy and of Python."""
    kind, key, place, has_normal, normal = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": (kind, torch.from_numpy(np.array(key)), place, has_normal, normal),
        "python": random.getstate(),
    }


def write_generators(states: dict[str, Any]) -> None:
    """Put the global generators into states that ``read_generators`` returned.

    Args:
        states: The states.
    """
    torch.set_rng_state(states["torch"].cpu())
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state.cpu(), device)
    kind, key, *rest = states["numpy"]
    np.random.set_state((kind, key.cpu().numpy(), *rest))
    version, words, normal = states["python"]
    random.setstate((version, tuple(words), normal))


@contextlib.contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the global generators as they were, whatever a ``with`` block draws from them."""
    states = read_generators()
    try:
        yield
    finally:
        write_generators(states)
