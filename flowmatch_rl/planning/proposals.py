"""Random candidates for a planner."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import check_shape


def perturb(center: Tensor, noise: Tensor, scale: float) -> Tensor:
    """A member of a family and random others near it.

    The member itself comes first: with an exact model, choosing among the candidates is never worse than following it.

    Args:
        center: Embedding of the member, shape (*batch, Z).
        noise: Noise of the others, shape (N, Z).
        scale: Size of the steps in units of the noise, at least 0.

    Returns:
        Candidates, shape (*batch, 1 + N, Z).

    Raises:
        ValueError: If the dimensions differ.
        UserError: If ``scale`` is negative.
    """
    check_shape("noise", noise, (*noise.shape[:1], center.shape[-1]))
    check_range("[0, inf)", scale=scale)
    center = center[..., None, :]
    return torch.cat([center, center + scale * noise], -2)


def on_sphere(points: Tensor, radius: float) -> Tensor:
    """Projection of points onto a sphere around 0; standard normal noise becomes uniform on it.

    Args:
        points: Points other than 0, shape (*batch, Z), Z at least 1.
        radius: Radius of the sphere, positive.

    Returns:
        Points of the sphere, shape (*batch, Z).

    Raises:
        ValueError: If Z is 0.
        UserError: If ``radius`` is not positive.
    """
    if points.shape[-1] == 0:
        raise ValueError(f"expected points of at least 1 dimension, got {tuple(points.shape)}")
    check_range("(0, inf)", radius=radius)
    return radius * normalize(points, dim=-1, eps=0.0)
