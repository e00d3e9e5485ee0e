"""Layer normalisation with an explicit backward pass."""

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-5
"""Added to the variance, as in ``torch.nn.LayerNorm``."""


class Normalisation(NamedTuple):
    """State that the backward pass of a layer normalisation needs.

    Attributes:
        x: Input, shape (R, H).
        mean: Mean of each row, shape (R, 1).
        inverse_std: One over the standard deviation of each row, shape (R, 1).
    """

    x: Tensor
    mean: Tensor
    inverse_std: Tensor


def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Normalisation]:
    """Layer normalisation: rows of mean zero and variance one, times a weight, plus a bias.

    Args:
        x: Input, shape (R, H); cast to the precision of the weight.
        weight: Shape (H,).
        bias: Shape (H,).

    Returns:
        Output, shape (R, H), and the state for ``normalised_gradient``.
    """
    x = x.to(weight.dtype)
    output, mean, inverse_std = torch.native_layer_norm(x, [x.shape[-1]], weight, bias, EPSILON)
    return output, Normalisation(x, mean, inverse_std)


def normalised_gradient(gradient: Tensor, kept: Normalisation, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient at the input of ``normalised``.

    Args:
        gradient: Gradient at its output, shape (R, H).
        kept: State that ``normalised`` returned.
        weight: Shape (H,).
        bias: Shape (H,).

    Returns:
        Gradient, shape (R, H).
    """
    return torch.ops.aten.native_layer_norm_backward(
        gradient, kept.x, [kept.x.shape[-1]], kept.mean, kept.inverse_std, weight, bias, [True, False, False]
    )[0]
