"""Log-likelihoods along exact fields, whose densities are known."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, GaussianMixture, Schedule, VarianceExplodingSchedule
from flowmatch_rl.solvers import (
    RK4,
    AdaptiveSolver,
    Divergence,
    ExactDivergence,
    HutchinsonDivergence,
    Midpoint,
    Solver,
    log_likelihood,
)
from tests import oracles
from tests.combinations import each_value
from tests.families import DIVERGENCES, SCHEDULES
from tests.oracles import F64, normal

MIXTURE = oracles.GaussianMixture.of([0.2, 0.5, 0.3], [[0.5, -1.0], [-1.0, 0.3], [0.8, 0.8]], [0.5, 0.6, 0.55])
"""Three modes of different weights and widths in the plane."""
ENDS = (1e-3, 1.0 - 1e-3)
"""Flow times between which every path is regular."""


def velocity(schedule: Schedule):
    return GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.scales).field(AffinePath(schedule))


def log_density(schedule: Schedule, x: Tensor, t: float) -> Tensor:
    time = torch.tensor(t, dtype=F64)
    return MIXTURE.log_marginal(x, schedule.alpha(time), schedule.sigma(time))


def error(schedule: Schedule, solver: Solver) -> Tensor:
    """Distance of the log-likelihood of 60 draws from the truth, nats."""
    x = MIXTURE.draw(60, seed=1)
    found, _ = log_likelihood(
        velocity(schedule), x, lambda x: log_density(schedule, x, ENDS[0]), solver, ExactDivergence(), *ENDS
    )
    return (found - log_density(schedule, x, ENDS[1])).abs()


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not isinstance(s, VarianceExplodingSchedule)], ids=repr)
def test_a_hundred_midpoint_steps_are_within_a_thousandth_of_a_nat_of_a_mixture(schedule: Schedule) -> None:
    assert error(schedule, Midpoint(100)).max() < 1e-3


def test_an_exploding_path_wants_a_higher_order_for_that() -> None:
    """The noise grows by a constant factor per step, which the midpoint rule misses by its cube."""
    schedule = VarianceExplodingSchedule()
    assert 1e-3 < error(schedule, Midpoint(100)).mean() < 2e-2
    assert error(schedule, RK4(60)).max() < 3e-4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_an_adaptive_solver_is_as_close_as_its_tolerance(schedule: Schedule) -> None:
    assert error(schedule, AdaptiveSolver(rtol=1e-6, atol=1e-6)).max() < 5e-5


@each_value
@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3)])
def test_the_likelihood_of_a_linear_flow_is_exact(batch: tuple[int, ...], dims: int) -> None:
    """``dx/dt = A x`` from a standard normal gives N(0, exp(A) exp(A)^T), whatever A."""
    matrix, x = 0.5 * normal(dims, dims, seed=1), normal(*batch, dims, seed=2)
    flow = torch.linalg.matrix_exp(matrix)
    law = torch.distributions.MultivariateNormal(torch.zeros(dims, dtype=F64), flow @ flow.T)

    def start(x: Tensor) -> Tensor:
        return -0.5 * (x.square().sum(-1) + dims * math.log(2.0 * math.pi))

    found, x_0 = log_likelihood(lambda x, t, c: x @ matrix.T, x, start, RK4(100), ExactDivergence())
    assert found.shape == batch
    torch.testing.assert_close(found, law.log_prob(x), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x_0, x @ torch.linalg.inv(flow).T, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_likelihood_of_a_normal_is_that_normal(schedule: Schedule) -> None:
    """A single component: the flow stretches about its mean."""
    mean, scale, path = torch.tensor([[0.7, -0.4]], dtype=F64), 0.5, AffinePath(schedule)
    mixture = GaussianMixture(torch.ones(1, dtype=F64), mean, torch.tensor([scale], dtype=F64))
    x = mean + scale * normal(5, 2, seed=1)

    def start(x: Tensor) -> Tensor:
        return mixture.marginal_log_prob(path, x, torch.tensor(ENDS[0], dtype=F64))

    solver = AdaptiveSolver(rtol=1e-6, atol=1e-6)
    found, _ = log_likelihood(mixture.field(path), x, start, solver, ExactDivergence(), *ENDS)
    t = torch.tensor(ENDS[1], dtype=F64)
    std = (schedule.alpha(t).square() * scale**2 + schedule.sigma(t).square()).sqrt()
    expected = torch.distributions.Normal(schedule.alpha(t) * mean, std).log_prob(x).sum(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_signs_of_the_probes_average_to_the_exact_likelihood() -> None:
    """All sign combinations once, each held fixed along the way: unbiased without sampling error."""
    schedule, x = SCHEDULES[0], MIXTURE.draw(5, seed=1)
    probes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=F64)

    def run(x: Tensor, divergence: Divergence, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        def start(x: Tensor) -> Tensor:
            return log_density(schedule, x, ENDS[0])

        return log_likelihood(velocity(schedule), x, start, Midpoint(20), divergence, *ENDS, noise=noise)

    exact, x_0 = run(x, ExactDivergence(), None)
    together = x.expand(4, 5, 2)
    estimates, also_x_0 = run(together, HutchinsonDivergence(), probes[None, :, None].expand(1, 4, 5, 2))
    assert estimates.std(0).min() > 1e-3
    torch.testing.assert_close(estimates.mean(0), exact)
    torch.testing.assert_close(also_x_0, x_0.expand(4, 5, 2))


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d.needed_probes], ids=repr)
def test_random_probes_are_unbiased(divergence: Divergence) -> None:
    schedule, count = SCHEDULES[0], 3000
    x = MIXTURE.draw(1, seed=2)

    def run(x: Tensor, divergence: Divergence, noise: Tensor | None) -> Tensor:
        def start(x: Tensor) -> Tensor:
            return log_density(schedule, x, ENDS[0])

        return log_likelihood(velocity(schedule), x, start, Midpoint(10), divergence, *ENDS, noise=noise)[0]

    noise = normal(divergence.needed_probes, count, 2, seed=3)
    estimates = run(x.expand(count, -1), divergence, noise)
    allowed = 3.0 * estimates.std() / math.sqrt(count)
    assert (estimates.mean() - run(x, ExactDivergence(), None)).abs().item() < allowed.item() < 0.2


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_the_point_at_the_start_leads_back_to_the_sample_and_conditions_are_passed_on(divergence: Divergence) -> None:
    x, condition, asked = normal(3, 4, 2, seed=1), normal(3, 1, 5, seed=2), []

    def pull(x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        asked.append(context)
        return torch.cos(x + 2.0 * t) + condition.sum(-1, keepdim=True)

    noise = normal(divergence.needed_probes, 3, 4, 2, seed=3) if divergence.needed_probes else None
    found, x_0 = log_likelihood(
        pull, x, lambda x: torch.zeros_like(x[..., 0]), RK4(20), divergence, 0.2, 0.9, condition, noise
    )
    assert found.shape == (3, 4)
    torch.testing.assert_close(RK4(20).integrate(pull, x_0, 0.2, 0.9, condition), x, rtol=1e-6, atol=1e-6)
    assert all(context is condition for context in asked)


def test_noise_that_does_not_fit_is_refused() -> None:
    x = torch.zeros(4, 2)
    for noise in (None, torch.zeros(4, 2), torch.zeros(2, 4, 2), torch.zeros(1, 4, 3)):
        with pytest.raises(ValueError, match=r"\(1, 4, 2\)"):
            log_likelihood(lambda x, t, c: x, x, lambda x: x.sum(-1), Midpoint(2), HutchinsonDivergence(), noise=noise)


def test_every_point_may_have_a_time_of_its_own() -> None:
    """Beside one call per time; and the derivative with respect to the times goes through the solver."""
    schedule = SCHEDULES[0]
    x, times = MIXTURE.draw(3, seed=2), torch.tensor([0.3, 0.6, 0.9], dtype=F64)

    def found(x: Tensor, t_end: Tensor | float) -> Tensor:
        return log_likelihood(
            velocity(schedule),
            x,
            lambda x: log_density(schedule, x, ENDS[0]),
            Midpoint(20),
            ExactDivergence(),
            ENDS[0],
            t_end,
        )[0]

    torch.testing.assert_close(found(x, times), torch.cat([found(x[k : k + 1], float(times[k])) for k in range(3)]))
    slope = torch.func.jvp(lambda t: found(x, t), (times,), (torch.ones_like(times),))[1]
    torch.testing.assert_close(slope, (found(x, times + 1e-4) - found(x, times - 1e-4)) / 2e-4, rtol=1e-4, atol=1e-4)
