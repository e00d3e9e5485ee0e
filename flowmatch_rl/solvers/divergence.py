"""Divergence of a velocity field: exact, or estimated with random probes."""

import abc
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.types import Velocity


@dataclass(frozen=True)
class Divergence(abc.ABC):
    """Computes the trace of the Jacobian of a velocity with respect to the sample."""

    @property
    @abc.abstractmethod
    def needed_probes(self) -> int:
        """Number of probes per sample, 0 for none."""

    @abc.abstractmethod
    def evaluate(
        self, velocity: Velocity, x: Tensor, t: Tensor, condition: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Velocity and its divergence.

        Args:
            velocity: Field, called as ``velocity(x, t, condition)``; samples must not influence each other.
            x: Points, shape (*batch, D).
            t: Flow time in [0, 1], its shape a prefix of the batch shape.
            condition: Condition of the field, or None.
            noise: Standard normal, shape (needed_probes, *batch, D); None without probes.

        Returns:
            Velocity, shape (*batch, D), and divergence, shape (*batch).

        Raises:
            ValueError: If the noise is not of the stated shape.
        """


@dataclass(frozen=True)
class ExactDivergence(Divergence):
    """The exact trace, by one forward-mode derivative per dimension, all in one pass.

    Costs 1 + D evaluations of the field.
    """

    @property
    def needed_probes(self) -> int:
        """0."""
        return 0

    def evaluate(
        self, velocity: Velocity, x: Tensor, t: Tensor, condition: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Velocity (*batch, D) and its exact divergence (*batch)."""
        basis = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        directions = basis.reshape(-1, *[1] * (x.dim() - 1), x.shape[-1]).expand(-1, *x.shape)  # (D, *batch, D)
        value, columns = _derivatives(velocity, x, t, condition, directions)
        return value, torch.diagonal(columns, dim1=0, dim2=-1).sum(-1)


@dataclass(frozen=True)
class HutchinsonDivergence(Divergence):
    """The unbiased estimate ``mean_k probe_k . (J probe_k)`` by forward-mode derivatives along random probes.

    Costs 1 + num_probes evaluations of the field. With probes held fixed along a trajectory the log-likelihood is
    unbiased. Rademacher probes have the smaller variance, and none in one dimension.

    Args:
        kind: Distribution of the probes' entries.
        num_probes: Probes K per sample, at least 1.

    Raises:
        UserError: If ``num_probes`` is below 1.

    Reference:
        Grathwohl et al., arXiv:1810.01367.
    """

    kind: Literal["rademacher", "gaussian"] = "rademacher"
    num_probes: int = 1

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_probes=self.num_probes)

    @property
    def needed_probes(self) -> int:
        """``num_probes``."""
        return self.num_probes

    def evaluate(
        self, velocity: Velocity, x: Tensor, t: Tensor, condition: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Velocity (*batch, D) and an estimate of its divergence (*batch)."""
        expected = (self.num_probes, *x.shape)
        if noise is None or noise.shape != expected:
            raise ValueError(f"expected noise of shape {expected}, got {None if noise is None else tuple(noise.shape)}")
        probes = torch.where(noise < 0.0, -1.0, 1.0).to(x) if self.kind == "rademacher" else noise
        value, images = _derivatives(velocity, x, t, condition, probes)
        return value, (probes * images).sum(-1).mean(0)


def _derivatives(
    velocity: Velocity, x: Tensor, t: Tensor, condition: Tensor | None, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Velocity (*batch, D) and its derivatives along K directions, both directions and derivatives (K, *batch, D)."""
    x = x.contiguous()  # an expanded tensor has no memory for the derivative

    def field(point: Tensor) -> Tensor:
        return velocity(point, t, condition)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(field, (x,), (direction,))[:2]

    if len(directions) == 1:
        value, derivative = along(directions[0])
        return value, derivative[None]
    # The value is the same for every direction and is computed once.
    return torch.func.vmap(along, out_dims=(None, 0))(directions)  # pyright: ignore[reportArgumentType]
