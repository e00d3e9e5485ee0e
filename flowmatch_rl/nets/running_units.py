"""Mean and standard deviation of columns over everything seen so far, as units of a network's inputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowmatch_rl.shapes import check_shape

MOST_DEVIATIONS = 10.0
"""Standardised entries are clipped to this size: an entry that hardly varied at first may vary later."""

_CONSTANT = 1e-6
"""Standard deviation over the size of the mean below which a column counts as constant in single precision."""


def moments_of(rows: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations from the mean of each column, in double precision.

    Args:
        rows: Shape (B, D).

    Returns:
        Shape (3, D).
    """
    rows = rows.detach().double()
    mean = rows.mean(0)
    return torch.stack([torch.full_like(mean, len(rows)), mean, (rows - mean).square().sum(0)])


class RunningUnits(nn.Module):
    """Standardises columns by their moments over all rows that it was given; without any it leaves them alone.

    Moments are kept in double precision, and the rows of a batch count alike, whenever they came. A column that is
    constant so far has the mean subtracted and the unit 1. Standardised entries are clipped to ``MOST_DEVIATIONS``.

    Several networks share one instance, and all of its buffers are part of their state.

    Args:
        dim: Number D of columns.

    Reference:
        Lee et al., arXiv:2410.09754, for observations of actor-critics standardised by running statistics.
    """

    moments: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("moments", torch.zeros(3, dim, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @property
    def is_empty(self) -> bool:
        """Whether it has no moments. Waits for the device."""
        return float(self.moments[0, 0]) == 0.0

    @property
    def root_mean_square(self) -> Tensor:
        """Root of the mean square of each column, shape (D,); 1 where all rows are 0, or there are none."""
        count, mean, squares = self.moments.unbind(0)
        size = (mean.square() + squares / count.clamp_min(1.0)).sqrt()
        return torch.where(size > 0.0, size, 1.0).to(self.scale.dtype)

    @torch.no_grad()
    def update(self, rows: Tensor, gather: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count the rows of a batch.

        Args:
            rows: Shape (B, D).
            gather: Collects a tensor of shape (3, D) from all processes, in any number of leading dimensions, so that
                all come to the same units; None for one process.

        Raises:
            ValueError: If the rows have another number of columns.
        """
        check_shape("rows", rows, (len(rows), self.shift.shape[0]))
        moments = moments_of(rows)
        self.add(moments if gather is None else gather(moments))

    @torch.no_grad()
    def add(self, moments: Tensor) -> None:
        """Count rows by their moments.

        Args:
            moments: Moments of P sets of rows as ``moments_of`` returns them, shape (P, 3, D) or (3, D).
        """
        parts = torch.cat([self.moments[None], moments.reshape(-1, *self.moments.shape).to(self.moments)])
        count, mean, squares = parts.unbind(1)  # each (P + 1, D)
        total = count.sum(0)
        joint = (count * mean).sum(0) / total
        # Deviations are from the joint mean: no large squares cancel.
        squares = (squares + count * (mean - joint).square()).sum(0)
        self.moments.copy_(torch.stack([total, joint, squares]))
        std = (squares / total).sqrt()
        self.shift.copy_(joint)
        self.scale.copy_(torch.where(std > _CONSTANT * joint.abs(), std, 1.0))

    def forward(self, rows: Tensor) -> Tensor:
        """Standardised rows, shape (*batch, D)."""
        return ((rows - self.shift) / self.scale).clamp_(-MOST_DEVIATIONS, MOST_DEVIATIONS)
