"""When trajectories that terminated would have been cut.

Near a time limit only those steps are observed to their end that happen to terminate. A reader that keeps these, and
drops the others, selects on the future. What it may look at is the distance to the time limit, which is known before
anything follows; where a trajectory terminated first, its limit is drawn from those of trajectories that went on.
"""

import torch
from torch import Tensor

ENDLESS = 2**31
"""Steps of a trajectory that is never cut."""


def draw_time_limits(length: Tensor, terminated: Tensor, uniform: Tensor) -> Tensor:
    """Steps after which each trajectory was cut, or would have been had it not terminated.

    The limits of terminated trajectories follow the distribution of the others' (of those that were at risk), which is
    exact if the time at which a trajectory is cut does not depend on what happens in it. A time limit that two or more
    reached is found as it is.

    Args:
        length: Steps of each trajectory, integer, shape (M,).
        terminated: Whether it ended in a terminal state; otherwise it was cut, boolean, shape (M,).
        uniform: Uniform noise in [0, 1), shape (M,).

    Returns:
        Time limits in steps, at least the length, integer, shape (M,); ``ENDLESS`` where no trajectory was cut so late.

    Reference:
        Kaplan and Meier, Nonparametric Estimation from Incomplete Observations, 1958.
    """
    cuts, number = length[~terminated].unique(return_counts=True)
    # A trajectory that terminates at a cut is no longer at risk there: it is not known whether it was cut too.
    longer = len(length) - torch.searchsorted(length.sort().values, cuts, right=True)
    at_risk = number + longer
    # The longest trajectory may be cut by the end of the data: by itself it does not tell of a limit.
    hazard = torch.where(at_risk > 1, number / at_risk.double(), 0.0)
    survival = torch.cat([torch.ones(1).double(), (1.0 - hazard).cumprod(0)])
    before = survival[torch.searchsorted(cuts, length)]
    later = torch.searchsorted(-survival[1:], -uniform * before)
    limits = torch.cat([cuts, torch.tensor([ENDLESS])])[later]
    return torch.where(terminated, limits, length)
