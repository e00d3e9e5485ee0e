"""Averages over the samples of a batch whose flow times are alike."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_shape


def time_bins(t: Tensor, num_bins: int, t_min: float = 0.0) -> Tensor:
    """Index of the bin that each flow time falls in, of equal bins of ``[t_min, 1 - t_min]``.

    Args:
        t: Flow times, shape (B,); those outside the interval fall in the bins at its ends.
        num_bins: Number of bins, at least 1.
        t_min: Start of the interval, in [0, 0.5).

    Returns:
        Indices from 0 to ``num_bins - 1``, shape (B,).

    Raises:
        ValueError: If a number is out of its range.
    """
    if num_bins < 1 or not 0.0 <= t_min < 0.5:
        raise ValueError(f"expected num_bins >= 1 and 0 <= t_min < 0.5, got num_bins={num_bins}, t_min={t_min}")
    return ((t - t_min) / (1.0 - 2.0 * t_min) * num_bins).long().clamp(0, num_bins - 1)


def time_bin_sums(
    values: Mapping[str, Tensor], t: Tensor, num_bins: int, t_min: float = 0.0
) -> tuple[dict[str, Tensor], Tensor]:
    """Sums of values over the samples in each bin of flow time, and the number of samples there.

    Sums and counts of several batches add up, so that the mean of a bin is their ratio. Nothing waits for the device.

    Args:
        values: Values per sample by name, shape (B,) each.
        t: Flow times, shape (B,).
        num_bins: Number of equal bins of ``[t_min, 1 - t_min]``, at least 1.
        t_min: Start of the interval, in [0, 0.5).

    Returns:
        Sums by name, shape (num_bins,) each, and counts as floating-point numbers, shape (num_bins,).

    Raises:
        ValueError: If a shape is not as stated or a number is out of its range.
    """
    index = time_bins(t, num_bins, t_min)

    def total(value: Tensor) -> Tensor:
        return value.new_zeros(num_bins).index_add(0, index, value)

    for name, value in values.items():
        check_shape(name, value, tuple(t.shape))
    return {name: total(value) for name, value in values.items()}, total(torch.ones_like(t))


def time_bin_average(value: Tensor, t: Tensor, num_bins: int) -> Tensor:
    """Replace each row by the average of the rows in its bin of flow time.

    Args:
        value: Values per sample, shape (B, D).
        t: Flow times in [0, 1], shape (B,).
        num_bins: Number of equal bins of [0, 1], at least 1.

    Returns:
        Averages, shape (B, D).
    """
    index = time_bins(t, num_bins)
    total = value.new_zeros(num_bins, value.shape[1]).index_add(0, index, value)
    count = value.new_zeros(num_bins).index_add(0, index, torch.ones_like(value[:, 0]))
    return total[index] / count[index][:, None]
