import pytest
import torch

from flowmatch_rl.paths import Schedule
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import AdaptiveSolver, Euler, Midpoint, Solver
from tests.families import SCHEDULES
from tests.oracles import normal
from tests.samplers.exact import carry, ends, exact_model, law, silent


@pytest.mark.parametrize("solver", [Euler(7), Midpoint(3), AdaptiveSolver(num_points=4)], ids=repr)
def test_it_integrates_the_velocity_by_its_solver(solver: Solver) -> None:
    model, x = exact_model(SCHEDULES[0], "noise"), normal(2, 3, 1, seed=1)
    sampler = OdeSampler(solver)
    assert torch.equal(sampler.sample(model, x, 0.1, 0.8, silent), solver.integrate(model.velocity, x, 0.1, 0.8))
    found = sampler.trajectory(model, x, 0.1, 0.8, silent)
    for one, other in zip(found, solver.trajectory(model.velocity, x, 0.1, 0.8), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_point_keeps_its_quantile(schedule: Schedule) -> None:
    t_start, t_end = ends(schedule)
    x = law(schedule, t_start).quantiles(51)[:, None]
    sampler = OdeSampler(AdaptiveSolver("dopri8", 1e-7, 1e-7))
    samples = sampler.sample(exact_model(schedule, "data"), x, t_start, t_end, silent)
    start = x.new_tensor(t_start)
    torch.testing.assert_close(samples, carry(schedule, x, start, t_end - start), rtol=0, atol=1e-5)
