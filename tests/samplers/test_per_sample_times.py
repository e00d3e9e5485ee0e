"""Samplers with flow times of their own for every sample."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, Field, Schedule
from flowmatch_rl.samplers import AverageVelocitySampler, DdimSampler, Draw, OdeSampler, Sampler, SdeSampler
from flowmatch_rl.solvers import AdaptiveSolver, Euler, Midpoint
from flowmatch_rl.types import Prediction
from tests.combinations import each_value, one_test
from tests.families import SAMPLERS, SCHEDULES
from tests.oracles import F64, normal
from tests.samplers.exact import silent

STARTS = torch.tensor([0.2, 0.25, 0.4, 0.2, 0.6, 0.3], dtype=F64)
ENDS = torch.tensor([0.9, 0.3, 0.95, 0.2, 0.61, 0.8], dtype=F64)
FEW_STEPS: list[Sampler] = [
    OdeSampler(Euler(4)),
    OdeSampler(Midpoint(3)),
    SdeSampler(4),
    DdimSampler(4),
    DdimSampler(4, eta=0.7),
    AverageVelocitySampler(2),
]


def model(schedule: Schedule = SCHEDULES[0], prediction: Prediction = "velocity") -> Field:
    """A field that depends on everything: the point, the time and the condition."""

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        time = t.reshape(t.shape + (1,) * (x.dim() - t.dim()))
        return torch.cos(x.flip(-1) + 2.0 * time) + (0.0 if condition is None else condition)

    def average(x: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None) -> Tensor:
        return predict(x, t + 0.3 * duration, condition)

    return Field(AffinePath(schedule), predict, prediction, average)


def replay(noises: Tensor, row: int | slice = slice(None)) -> Draw:
    """Noise step by step, shape (steps, B, ...), for all samples or one."""
    steps = iter(noises)
    return lambda like: next(steps)[row].reshape(like.shape)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_with_times_of_their_own_are_those_of_a_loop(sampler: Sampler) -> None:
    x, condition, noises = normal(6, 2, seed=1), normal(6, 2, seed=2), normal(200, 6, 2, seed=3)
    together = sampler.sample(model().at(condition), x, STARTS, ENDS, replay(noises))
    for i in range(6):
        field = model().at(condition[i : i + 1])
        alone = sampler.sample(field, x[i : i + 1], STARTS[i].item(), ENDS[i].item(), replay(noises, i))
        torch.testing.assert_close(together[i], alone[0], rtol=1e-9, atol=1e-9)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("sampler", FEW_STEPS, ids=repr)
def test_that_holds_on_every_path_from_a_common_start(sampler: Sampler, schedule: Schedule) -> None:
    x, noises, field = normal(6, 2, seed=1), normal(4, 6, 2, seed=3), model(schedule, "data")
    together = sampler.sample(field, x, 0.2, ENDS, replay(noises))
    for i in range(6):
        alone = sampler.sample(field, x[i : i + 1], 0.2, ENDS[i].item(), replay(noises, i))
        torch.testing.assert_close(together[i], alone[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", FEW_STEPS, ids=repr)
def test_particles_share_the_time_of_their_sample(sampler: Sampler) -> None:
    x, noises = normal(6, 5, 2, seed=1), normal(4, 6, 5, 2, seed=3)
    together = sampler.sample(model(), x, STARTS, ENDS, replay(noises))
    for i in range(6):
        alone = sampler.sample(model(), x[i], STARTS[i].item(), ENDS[i].item(), replay(noises, i))
        torch.testing.assert_close(together[i], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", FEW_STEPS, ids=repr)
def test_a_trajectory_has_one_row_of_times_per_point(sampler: Sampler) -> None:
    x, noises = normal(6, 2, seed=1), normal(4, 6, 2, seed=3)
    times, points = sampler.trajectory(model(), x, STARTS, ENDS, replay(noises))
    assert times.shape == (len(points), 6)
    assert points.shape == (len(times), 6, 2)
    torch.testing.assert_close(times[0], STARTS)
    torch.testing.assert_close(times[-1], ENDS)
    assert torch.equal(points[0], x)
    assert torch.equal(points[-1], sampler.sample(model(), x, STARTS, ENDS, replay(noises)))


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.1, 0.5, STARTS], ids=["early", "middle", "per sample"])
@pytest.mark.parametrize("sampler", [OdeSampler(Euler(4)), OdeSampler(Midpoint(3)), DdimSampler(4)], ids=repr)
def test_no_way_to_go_leads_nowhere(sampler: Sampler, t: float | Tensor, schedule: Schedule) -> None:
    x = normal(6, 2, seed=1)
    end = sampler.sample(model(schedule, "data"), x, t, t, silent)
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)


def test_an_adaptive_solver_goes_nowhere_either() -> None:
    x = normal(6, 2, seed=1)
    sampler = OdeSampler(AdaptiveSolver())
    end = sampler.sample(model(), x, STARTS, STARTS, silent)
    torch.testing.assert_close(end, x, rtol=1e-12, atol=1e-12)


@one_test
@pytest.mark.parametrize("sampler", FEW_STEPS, ids=repr)
@pytest.mark.parametrize("wrong", [torch.full((5,), 0.9), torch.full((2,), 0.9)])
def test_times_that_do_not_fit_the_samples_are_refused(sampler: Sampler, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"prefix|shape"):
        sampler.sample(model(), normal(6, 2, seed=1), 0.1, wrong.double(), torch.randn_like)
