"""What holds for every sampler, with models that are exact."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, Field, LinearSchedule, Schedule, VarianceExplodingSchedule
from flowmatch_rl.samplers import DdimSampler, OdeSampler, Sampler, SdeSampler
from flowmatch_rl.solvers import RK4, AdaptiveSolver, Euler
from flowmatch_rl.types import Prediction
from tests.combinations import each_value
from tests.families import SAMPLERS, SCHEDULES
from tests.oracles import F64, normal
from tests.samplers.exact import ends, exact_model, law, seeded, silent

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
COUNT = 1500


def allowed(sampler: Sampler) -> float:
    """Distance W1 between samples and quantiles; that of as many independent samples is about 0.03."""
    if sampler.needs_average_velocity:
        return 1e-9
    return 2e-3 if isinstance(sampler, OdeSampler) and isinstance(sampler.solver, RK4) else 0.06


def distance(sampler: Sampler, schedule: Schedule, prediction: Prediction) -> float:
    """W1 between samples of the exact model and the law at the end; on the line it is that of sorted points."""
    t_start, t_end = ends(schedule)
    start = law(schedule, t_start).quantiles(COUNT)[:, None]
    samples = sampler.sample(exact_model(schedule, prediction), start, t_start, t_end, seeded(1))
    assert samples.shape == start.shape
    return (samples[:, 0].sort().values - law(schedule, t_end).quantiles(COUNT)).abs().mean().item()


@each_value
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_of_an_exact_model_match_the_mixture(sampler: Sampler, prediction: Prediction) -> None:
    assert distance(sampler, LinearSchedule(), prediction) < allowed(sampler)


@each_value
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != LinearSchedule()], ids=repr)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_samples_match_the_mixture_on_every_path(sampler: Sampler, schedule: Schedule) -> None:
    steep = isinstance(schedule, VarianceExplodingSchedule) and sampler == OdeSampler(Euler(50))
    assert distance(sampler, schedule, "velocity") < (0.2 if steep else allowed(sampler))


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not s.needs_average_velocity], ids=repr)
def test_whatever_the_model_predicts_the_samples_are_the_same(sampler: Sampler, schedule: Schedule) -> None:
    t_start, t_end = ends(schedule)
    start = law(schedule, t_start).quantiles(7)[:, None]
    by_velocity, *others = (
        sampler.sample(exact_model(schedule, prediction), start, t_start, t_end, seeded(1))
        for prediction in PREDICTIONS
    )
    for samples in others:
        torch.testing.assert_close(samples, by_velocity, rtol=1e-8, atol=1e-8)


@each_value
@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_a_trajectory_begins_and_ends_where_sampling_does(sampler: Sampler, batch: tuple[int, ...]) -> None:
    model, start = exact_model(LinearSchedule()), normal(*batch, 1, seed=1)
    times, points = sampler.trajectory(model, start, 0.1, 0.9, seeded(2))
    assert times.dim() == 1
    assert points.shape == (len(times), *batch, 1)
    assert torch.equal(points[0], start)
    assert torch.equal(points[-1], sampler.sample(model, start, 0.1, 0.9, seeded(2)))
    torch.testing.assert_close(times, torch.linspace(0.1, 0.9, len(times), dtype=F64))
    assert len(times) > 1


@pytest.mark.parametrize(
    "sampler", [*(s for s in SAMPLERS if not s.adds_noise), SdeSampler(5, 0.0), DdimSampler(5, 0.0)], ids=repr
)
def test_a_deterministic_sampler_never_asks_for_noise(sampler: Sampler) -> None:
    assert not sampler.adds_noise
    model, start = exact_model(LinearSchedule()), normal(3, 1, seed=1)
    sampler.sample(model, start, 0.1, 0.9, silent)
    sampler.trajectory(model, start, 0.1, 0.9, silent)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.adds_noise], ids=repr)
def test_a_stochastic_sampler_spreads_points_that_start_together(sampler: Sampler) -> None:
    samples = sampler.sample(exact_model(LinearSchedule()), torch.zeros(50, 1, dtype=F64), 0.01, 0.99, seeded(1))
    assert samples.std() > 0.3


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_the_model_is_asked_with_the_condition_within_the_interval(sampler: Sampler) -> None:
    condition, asked = normal(3, 4, seed=2), []

    def predict(x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        asked.append((t.item(), context))
        return torch.cos(x)

    def average_velocity(x: Tensor, t: Tensor, duration: Tensor, context: Tensor | None) -> Tensor:
        asked.append(((t + duration).item(), context))
        return predict(x, t, context)

    model = Field(AffinePath(), predict, "velocity", average_velocity)
    start = normal(3, 2, seed=1, dtype=torch.float32)
    samples = sampler.sample(model.at(condition), start, 0.05, 0.95, seeded(1))
    assert samples.dtype == torch.float32
    assert samples.shape == (3, 2)
    assert asked
    assert all(context is condition and 0.05 - 1e-6 <= t <= 0.95 + 1e-6 for t, context in asked)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s.steps is not None], ids=repr)
def test_the_same_sampler_takes_another_number_of_steps(sampler: Sampler) -> None:
    other = sampler.with_steps(3)
    assert other is not None
    assert other.steps == 3
    times, _ = other.trajectory(exact_model(LinearSchedule()), normal(2, 1, seed=1), 0.1, 0.9, seeded(2))
    assert len(times) == 4
    assert sampler.steps is not None
    assert other.with_steps(sampler.steps) == sampler  # nothing else has changed
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        sampler.with_steps(0)


def test_a_sampler_that_follows_its_error_has_no_number_of_steps() -> None:
    sampler = OdeSampler(AdaptiveSolver())
    assert sampler.steps is None
    assert sampler.with_steps(3) is None
