"""Evaluation in pieces that fit a processor's cache."""

from collections.abc import Callable

import torch
from torch import Tensor

CPU_ROWS = 2048
"""Rows per piece on a CPU: 2048 rows of 256 floats are 2 MB, about the size of a core's cache. Without pieces the
elementwise functions between two matrix products are limited by main memory; see ``benchmarks/update_speed.py``."""


def map_in_chunks(
    function: Callable[..., tuple[Tensor, ...]], rows_per_state: int, *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function that treats states independently, on a CPU a few states at a time.

    Args:
        function: Takes tensors whose first dimension counts states and returns a tuple of such tensors.
        rows_per_state: Rows of the largest matrix product inside the function, per state.
        *inputs: Tensors of shape (B, ...).

    Returns:
        The result of ``function(*inputs)``.
    """
    # A power of two: usual batches split into pieces of one size, for which a function is compiled once.
    states = 1 << max(0, (CPU_ROWS // rows_per_state).bit_length() - 1)
    if inputs[0].device.type != "cpu" or len(inputs[0]) <= states:
        return function(*inputs)
    pieces = [function(*piece) for piece in zip(*(x.split(states) for x in inputs), strict=True)]
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))
