"""Embeddings of scalars."""

import math

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError


class SinusoidalEmbedding(nn.Module):
    """Cosines and sines of a scalar at geometrically spaced frequencies.

    Args:
        dim: Number of features E, even.
        max_frequency: Highest frequency, radians per unit of the scalar, positive.
        min_frequency: Lowest frequency, positive.

    Raises:
        UserError: If ``dim`` is odd or not positive.
    """

    frequencies: Tensor

    def __init__(self, dim: int = 128, max_frequency: float = 1.0, min_frequency: float = 1e-3) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise UserError(f"dim must be even and positive, got {dim}")
        exponents = torch.linspace(math.log(max_frequency), math.log(min_frequency), dim // 2)
        self.register_buffer("frequencies", exponents.exp(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Embed a scalar.

        Args:
            value: Any shape (...).

        Returns:
            Features, shape (..., E).
        """
        angles = value[..., None] * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def with_derivative(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and their derivatives with respect to the scalar, each of shape (..., E)."""
        features = self(value)
        cosines, sines = features.chunk(2, -1)
        return features, torch.cat([-self.frequencies * sines, self.frequencies * cosines], dim=-1)
