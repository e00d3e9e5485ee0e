"""Mean learning curve of several runs, which may differ in length or be unfinished."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.metrics.reliable import percentile_interval, resample_runs
from flowmatch_rl.shapes import check_same_shape


@dataclass(frozen=True)
class MeanCurve:
    """Mean of the curves of N runs at G abscissae, over the runs that reach each of them.

    Attributes:
        x: Abscissae, ascending, such as environment steps or seconds, shape (G,).
        mean: Mean over the runs that reach an abscissa, shape (G,).
        interval: Lower and upper bound of a bootstrap interval of the mean, shape (2, G); NaN where some runs are
            missing, or if there is only one run.
        num_runs: Number of runs in the mean, at least 1, shape (G,).
        total_runs: N.
    """

    x: Tensor
    mean: Tensor
    interval: Tensor
    num_runs: Tensor
    total_runs: int


def interpolate_curve(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Linear interpolation of a curve; NaN before its first and after its last point.

    Args:
        x: Abscissae of the points, strictly ascending, shape (P,).
        y: Ordinates, shape (P,).
        at: Where to evaluate, shape (G,).

    Returns:
        Values, shape (G,).

    Raises:
        ValueError: If x and y differ in shape, there are no points, or x does not ascend.
    """
    check_same_shape(x=x, y=y)
    if x.dim() != 1 or len(x) == 0:
        raise ValueError(f"expected points of shape (P,), P at least 1, got {tuple(x.shape)}")
    if not bool((x.diff() > 0.0).all()):
        raise ValueError("expected strictly ascending abscissae")
    right = torch.searchsorted(x, at).clamp(max=len(x) - 1)
    left = (right - 1).clamp(min=0)
    span = (x[right] - x[left]).clamp(min=torch.finfo(x.dtype).tiny)
    values = torch.lerp(y[left], y[right], (at - x[left]) / span)
    # A point itself is exact, also the first, which has no left neighbour.
    values = torch.where(at == x[right], y[right], values)
    return torch.where((at >= x[0]) & (at <= x[-1]), values, torch.nan)


def mean_curve(points: Sequence[tuple[Tensor, Tensor]], at: Tensor, uniform: Tensor, level: float = 0.95) -> MeanCurve:
    """Mean of the curves of several runs, with a bootstrap interval where all of them have values.

    Args:
        points: Abscissae and ordinates of each of N runs, shapes (P,), (P,), at least one run.
        at: Where to evaluate, ascending, shape (G,); abscissae that no run reaches are left out.
        uniform: Uniform random numbers in [0, 1) for the resamples, shape (R, N).
        level: Nominal coverage of the interval, in (0, 1).

    Returns:
        The curve, at those of the G abscissae that at least one run reaches.

    Raises:
        ValueError: If there is no run, or shapes do not fit.
    """
    if not points:
        raise ValueError("expected at least one run, got none")
    values = torch.stack([interpolate_curve(x, y, at) for x, y in points])  # (N, G)
    present = ~values.isnan()
    reached = present.any(0)
    values, present = values[:, reached], present[:, reached]
    interval = torch.full((2, values.shape[1]), torch.nan, dtype=values.dtype, device=values.device)
    complete = present.all(0)
    if len(points) > 1 and bool(complete.any()):
        runs = torch.arange(len(points), device=values.device)
        (drawn,) = resample_runs([runs], uniform)  # the same runs at every abscissa, (R, N)
        interval[:, complete] = percentile_interval(values[:, complete][drawn].mean(1), level)
    return MeanCurve(at[reached], values.nanmean(0), interval, present.sum(0), len(points))
