"""Log-likelihood of a flow by the instantaneous change of variables."""

from collections.abc import Callable

import torch
from torch import Tensor

from flowmatch_rl.solvers.base import Solver
from flowmatch_rl.solvers.divergence import Divergence
from flowmatch_rl.types import Time, Velocity


def log_likelihood(
    velocity: Velocity,
    x_1: Tensor,
    source_log_prob: Callable[[Tensor], Tensor],
    solver: Solver,
    divergence: Divergence,
    t_start: float = 0.0,
    t_end: Time = 1.0,
    condition: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-density of the flow at x_1.

    The flow is followed back to the source, and the divergence is integrated along the way:
    ``log p(x_1) = log p_source(x_0) - int div velocity dt``.

    Args:
        velocity: Field, called as ``velocity(x, t, condition)``; samples must not influence each other.
        x_1: Points at ``t_end``, shape (*batch, D).
        source_log_prob: Log-density at ``t_start``, nats; maps (*batch, D) to (*batch).
        solver: Solver.
        divergence: How the divergence is computed.
        t_start: Flow time of the source, in [0, 1].
        t_end: Flow time of the points, in [0, 1]; its shape a prefix of the batch shape.
        condition: Condition of the field, or None.
        noise: Standard normal noise of the probes, held fixed along the way, shape (needed_probes, *batch, D); None
            if the divergence has no probes.

    Returns:
        Log-density in nats, shape (*batch), and the points x_0 at ``t_start``, shape (*batch, D).

    Raises:
        ValueError: If the noise is not of the stated shape.

    Reference:
        Chen et al., arXiv:1806.07366 (instantaneous change of variables).
    """

    def augmented(state: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        value, rate = divergence.evaluate(velocity, state[..., :-1], t, context, noise)
        return torch.cat([value, rate[..., None]], dim=-1)

    begin = torch.cat([x_1, torch.zeros_like(x_1[..., :1])], dim=-1)
    end = solver.integrate(augmented, begin, t_end, t_start, condition)
    x_0 = end[..., :-1]
    # Integrated from t_end to t_start, the last entry is minus the integral from t_start to t_end.
    return source_log_prob(x_0) + end[..., -1], x_0
