"""The distribution of the time at which a discounted future is sampled."""

import torch
from torch import Tensor

from flowmatch_rl.shapes import append_dims


def geometric_steps(uniform: Tensor, discount: Tensor | float, max_steps: int | Tensor | None = None) -> Tensor:
    """Numbers of steps k = 1, 2, ... of probability ``(1 - discount) discount^(k - 1)``, by inverse transform.

    With ``max_steps`` the distribution is that of k given k <= max_steps. The arithmetic is in double precision.

    Args:
        uniform: Uniform noise in [0, 1), shape (*batch).
        discount: Discount per step in [0, 1), a number or of a shape that is a prefix of (*batch).
        max_steps: Largest number of steps, at least 1, or None for no limit; a number or as ``discount``.

    Returns:
        Steps, at least 1, int64, shape (*batch).

    Raises:
        ValueError: If a discount or a limit is out of its range, or a shape does not fit.
    """
    like = uniform.double()
    gamma = append_dims(torch.as_tensor(discount, dtype=torch.float64, device=uniform.device), like=like)
    if not bool(((gamma >= 0.0) & (gamma < 1.0)).all()):
        raise ValueError(f"discount must lie in [0, 1), got values from {float(gamma.min())} to {float(gamma.max())}")
    kept = like
    limit = None
    if max_steps is not None:
        limit = append_dims(torch.as_tensor(max_steps, device=uniform.device), like=like)
        if not bool((limit >= 1).all()):
            raise ValueError(f"max_steps must be at least 1, got {int(limit.min())}")
        kept = like * -torch.expm1(limit * gamma.log())
    # The logarithm of a discount of 0 is minus infinity, and the quotient 0.
    steps = 1 + (torch.log1p(-kept) / gamma.log()).floor().long()
    return steps if limit is None else torch.minimum(steps, limit.long())
