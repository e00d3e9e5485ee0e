"""Shape checks that prevent silent broadcasting, and rows at even distances."""

import torch
from torch import Tensor


def append_dims(t: Tensor, like: Tensor) -> Tensor:
    """Append unit dimensions to ``t`` until it has as many as ``like``.

    Args:
        t: Values per sample; its shape is a prefix of the shape of ``like``, or () for one value shared by all.
            A size of 1 in ``t`` stands for any size.
        like: Tensor to line up with, shape (*batch, *event).

    Returns:
        ``t`` with shape (*t.shape, 1, ..., 1).

    Raises:
        ValueError: If the shape of ``t`` is not a prefix of the shape of ``like``.
    """
    if t.dim() > like.dim() or any(a not in (1, b) for a, b in zip(t.shape, like.shape, strict=False)):
        raise ValueError(f"expected a shape that is a prefix of {tuple(like.shape)}, got {tuple(t.shape)}")
    return t.reshape(t.shape + (1,) * (like.dim() - t.dim()))


def check_same_shape(**tensors: Tensor) -> None:
    """Raise unless all tensors have one shape.

    Args:
        **tensors: Tensors by the names to use in the error.

    Raises:
        ValueError: If two shapes differ.
    """
    first, *others = tensors.values()
    if any(x.shape != first.shape for x in others):
        got = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise ValueError(f"expected equal shapes, got {got}")


def check_shape(name: str, x: Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless ``x`` has the shape ``expected``.

    Args:
        name: Name to use in the error.
        x: Tensor to check.
        expected: Expected shape.

    Raises:
        ValueError: If x has another shape.
    """
    if tuple(x.shape) != expected:
        raise ValueError(f"expected {name} of shape {expected}, got {tuple(x.shape)}")


def even_rows(number: int, most: int) -> Tensor:
    """Indices of rows at even distances, from the first to the last; all rows where there are few.

    Args:
        number: Rows there are, at least 1.
        most: Rows to choose at most, at least 2.

    Returns:
        Indices, ascending, shape (min(number, most),).
    """
    # In float32 the last index of more than 2^24 rows may be that of a row beyond them.
    return torch.linspace(0, number - 1, min(number, most), dtype=torch.float64).long()
