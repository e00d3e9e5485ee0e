"""Log-likelihood: error against an exact mixture, and the cost of the divergence.

The error is that of midpoint steps on the exact velocity of a mixture of four normals in the plane, along every path.
The cost is that of 1024 points in 20 midpoint steps with a network of 4x512, exact and by one random probe, beside a
midpoint rule written out with one backward pass per dimension, which needs the divergence at one stage of each step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import rates
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.paths import (
    AffinePath,
    CosineSchedule,
    GaussianMixture,
    GaussianSource,
    LinearSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.solvers import Divergence, ExactDivergence, HutchinsonDivergence, Midpoint, log_likelihood

T_MIN = 1e-3


def errors() -> list[dict[str, Any]]:
    """Largest and mean absolute error in nats over 1000 points, per path."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    mixture = GaussianMixture(torch.full((4,), 0.25, dtype=torch.float64), means, torch.full((4,), 0.5).double())
    noise = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    x_1 = mixture.draw(torch.rand(1000, generator=generator, dtype=torch.float64), noise)
    rows = []
    for schedule in (
        LinearSchedule(),
        CosineSchedule(),
        VariancePreservingSchedule(),
        VarianceExplodingSchedule(sigma_max=10.0),
    ):
        path, ends = AffinePath(schedule), torch.tensor([T_MIN, 1.0 - T_MIN], dtype=torch.float64)

        def source(x: Tensor, path: AffinePath = path, start: Tensor = ends[0]) -> Tensor:
            return mixture.marginal_log_prob(path, x, start)

        velocity = mixture.field(path)
        for steps in (100, 200):
            value, _ = log_likelihood(velocity, x_1, source, Midpoint(steps), ExactDivergence(), T_MIN, 1.0 - T_MIN)
            error = (value - mixture.marginal_log_prob(path, x_1, ends[1])).abs()
            rows.append(
                {
                    "what": f"{type(schedule).__name__}, {steps} steps",
                    "mean_error_nats": float(error.mean()),
                    "largest_error_nats": float(error.max()),
                    "seconds": "",
                }
            )
    return rows


def backward_per_dimension(network: torch.nn.Module, x: Tensor, steps: int) -> Tensor:
    """The divergence by one backward pass per dimension, integrated by the midpoint rule."""
    dt, total = -1.0 / steps, torch.zeros(len(x))
    for k in range(steps):
        t = torch.tensor(1.0 + k * dt)
        middle = (x + 0.5 * dt * network(x, t)).detach().requires_grad_()
        v = network(middle, t + 0.5 * dt)
        columns = [torch.autograd.grad(v[:, d].sum(), middle, retain_graph=True)[0][:, d] for d in range(x.shape[1])]
        total, x = total + dt * torch.stack(columns).sum(0), (x + dt * v).detach()
    return GaussianSource().log_prob(x) + total


def run(rounds: int = 3) -> dict[str, Any]:
    """Errors and costs."""
    torch.manual_seed(0)
    network = VelocityArchitecture(hidden_dim=512, num_blocks=3).build(2, 0)
    x = torch.randn(1024, 2)

    def ours(divergence: Divergence) -> Callable[[], object]:
        noise = torch.randn(divergence.needed_probes, 1024, 2) if divergence.needed_probes else None

        def measure() -> None:
            with torch.no_grad():
                log_likelihood(network, x, GaussianSource().log_prob, Midpoint(20), divergence, noise=noise)

        return measure

    functions = {
        "exact divergence": ours(ExactDivergence()),
        "one Rademacher probe": ours(HutchinsonDivergence()),
        "a backward pass per dimension": lambda: backward_per_dimension(network, x, 20),
    }
    best = rates(functions, rounds)
    rows = errors()
    rows += [
        {"what": name, "mean_error_nats": "", "largest_error_nats": "", "seconds": 1.0 / rate}
        for name, rate in best.items()
    ]
    return {"title": "Log-likelihood: error on a known mixture, and cost of the divergence", "rows": rows}
