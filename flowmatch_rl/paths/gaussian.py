"""Gaussian conditional paths of any mean and scale; affine paths are a special case."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import append_dims, check_same_shape


def gaussian_velocity(x: Tensor, mean: Tensor, scale: Tensor, d_mean: Tensor, d_scale: Tensor) -> Tensor:
    """Velocity ``d_scale / scale (x - mean) + d_mean`` that carries N(mean, scale^2) along its changes in time.

    Args:
        x: Points, shape (*batch, D).
        mean: Mean at the given time, shape (*batch, D).
        scale: Standard deviation, positive; shape (*batch) or a shape that broadcasts to x with trailing dimensions.
        d_mean: Derivative of the mean with respect to flow time, shape (*batch, D).
        d_scale: Derivative of the standard deviation, shape of ``scale``.

    Returns:
        Velocity, shape (*batch, D).

    Raises:
        ValueError: If x, mean and d_mean differ in shape, or that of a scale is not a prefix of it.

    Reference:
        Lipman et al., arXiv:2210.02747, Theorem 3.
    """
    check_same_shape(x=x, mean=mean, d_mean=d_mean)
    scale, d_scale = append_dims(scale, like=x), append_dims(d_scale, like=x)
    return d_scale / scale * (x - mean) + d_mean


@dataclass(frozen=True)
class GaussianPath:
    """Conditional paths ``N(mean(x_1, t), scale(x_1, t)^2)`` for any differentiable mean and scale.

    Derivatives with respect to time are taken by forward-mode automatic differentiation.

    Args:
        mean: Maps data (B, D) and flow times (B,) to means (B, D).
        scale: Maps the same to positive standard deviations (B,).
    """

    mean: Callable[[Tensor, Tensor], Tensor]
    scale: Callable[[Tensor, Tensor], Tensor]

    def sample(self, z: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """Point of the path, ``mean + scale z``.

        Args:
            z: Standard normal noise, shape (B, D).
            x_1: Data, shape (B, D).
            t: Flow time in [0, 1], shape (B,).

        Returns:
            x_t, shape (B, D).
        """
        return self.mean(x_1, t) + append_dims(self.scale(x_1, t), like=z) * z

    def conditional_velocity(self, x_t: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """Velocity at x_t given the data it leads to.

        Args:
            x_t: Points, shape (B, D).
            x_1: Data, shape (B, D).
            t: Flow time in [0, 1], shape (B,).

        Returns:
            Velocity, shape (B, D).
        """
        one = (torch.ones_like(t),)
        mean, d_mean = torch.func.jvp(lambda time: self.mean(x_1, time), (t,), one)[:2]
        scale, d_scale = torch.func.jvp(lambda time: self.scale(x_1, time), (t,), one)[:2]
        return gaussian_velocity(x_t, mean, scale, d_mean, d_scale)
