"""Statistics of columns of numbers in a file, of which a part at a time is read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def read_chunks(
    file: Path, dtype: type[np.generic], rows: int, width: int, chunk_rows: int = 2**18
) -> Iterator[np.ndarray]:
    """Yield the first rows of a file of numbers, a part of them at a time.

    Args:
        file: Numbers of one type, row after row.
        dtype: Their type.
        rows: Rows to read.
        width: Numbers per row.
        chunk_rows: Rows of a part at most.

    Yields:
        Parts of shape (at most ``chunk_rows``, width).
    """
    row_bytes = width * np.dtype(dtype).itemsize
    for start in range(0, rows, chunk_rows):
        count = min(chunk_rows, rows - start)
        yield np.fromfile(file, dtype, count * width, offset=start * row_bytes).reshape(count, width)


def column_moments(chunks: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of columns, in double precision, in one pass.

    Args:
        chunks: Parts of a table, each of shape (rows, width), rows positive; at least one.

    Returns:
        Mean and standard deviation (divisor N; 1 for a constant column) of each column, shape (width,).
    """
    first = next(chunks).astype(np.float64)
    count, mean = len(first), first.mean(0)
    squares = ((first - mean) ** 2).sum(0)
    low, high = first.min(0), first.max(0)
    for part in chunks:
        chunk = part.astype(np.float64)
        total = count + len(chunk)
        chunk_mean = chunk.mean(0)
        gap = chunk_mean - mean
        # Sums of squares about two means, brought to their common mean: no large numbers cancel.
        squares += ((chunk - chunk_mean) ** 2).sum(0) + gap**2 * (count * len(chunk) / total)
        mean += gap * (len(chunk) / total)
        low, high = np.minimum(low, chunk.min(0)), np.maximum(high, chunk.max(0))
        count = total
    # Rounding leaves a constant column with a deviation that is not quite 0.
    return mean, np.where(low == high, 1.0, np.sqrt(squares / count))
