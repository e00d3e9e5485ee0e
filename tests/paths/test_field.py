import itertools
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, Field, Schedule, guided
from flowmatch_rl.types import Prediction, Velocity
from tests.combinations import each_value
from tests.families import SCHEDULES
from tests.oracles import F64, TWO_D, normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@each_value
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_whatever_a_model_predicts_it_is_read_as_the_four_quantities(
    prediction: Prediction, schedule: Schedule
) -> None:
    path, t = AffinePath(schedule), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    asked = []

    def ends(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return TWO_D.posterior_means(x, schedule.alpha(t), schedule.sigma(t))

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        asked.append(condition)
        return path.target(prediction, *ends(x, t), t)

    x, condition, model = normal(3, 2, seed=1), normal(3, 4, seed=2), Field(path, predict, prediction)
    for target in PREDICTIONS:
        expected = path.target(target, *ends(x, t), t)
        torch.testing.assert_close(model.read_as(target, x, t, condition), expected, rtol=1e-10, atol=1e-10)
    velocity = path.conditional_velocity(*ends(x, t), t)
    torch.testing.assert_close(model.velocity(x, t, condition), velocity, rtol=1e-10, atol=1e-10)
    assert all(seen is condition for seen in asked)


def test_particles_and_times_of_any_prefix_shape_equal_a_loop() -> None:
    x = normal(2, 3, 2, seed=1)
    model = Field(AffinePath(), lambda x, t, c: torch.sin(x), "data")
    for t in (torch.tensor(0.3, dtype=F64), torch.tensor([0.3, 0.6], dtype=F64), uniform(2, 3, seed=2)):
        together = model.velocity(x, t)
        times = t.reshape(t.shape + (1,) * (2 - t.dim())).expand(2, 3)
        for i, n in itertools.product(range(2), range(3)):
            torch.testing.assert_close(together[i, n], model.velocity(x[i, n][None], times[i, n])[0])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_at_one_condition_a_field_says_what_it_does_with_it(prediction: Prediction) -> None:
    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return torch.sin(x) * t[:, None] + condition

    x, t, condition = normal(3, 2, seed=1), uniform(3, seed=2), normal(3, 2, seed=3)
    model = Field(AffinePath(SCHEDULES[2]), predict, prediction)
    here = model.at(condition)
    assert torch.equal(here.predict(x, t, None), predict(x, t, condition))
    for target in PREDICTIONS:
        assert torch.equal(here.read_as(target, x, t), model.read_as(target, x, t, condition))
    # Another condition is ignored: the field is bound to its own.
    assert torch.equal(here.velocity(x, t, condition + 1.0), model.velocity(x, t, condition))


def test_a_network_that_binds_sees_its_condition_once() -> None:
    bound = []

    def bind(condition: Tensor | None) -> Velocity:
        assert condition is not None
        bound.append(condition)
        offset = condition.square()
        return lambda x, t, _: x + offset

    x, t, condition = normal(3, 2, seed=1), uniform(3, seed=2), normal(3, 2, seed=3)
    model = Field(AffinePath(), lambda x, t, c: x + condition.square(), "velocity", bind=bind)
    here = model.at(condition)
    for _ in range(5):
        assert torch.equal(here.velocity(x, t), model.velocity(x, t, condition))
    assert len(bound) == 1
    assert bound[0] is condition


@pytest.mark.parametrize("binds", [False, True])
def test_at_one_condition_a_field_keeps_its_average_velocity(binds: bool) -> None:
    def predict(x: Tensor, t: Tensor, condition: Tensor | None, duration: Tensor | None = None) -> Tensor:
        assert condition is not None
        return torch.sin(x) + condition * (0.0 if duration is None else 1.0 + duration[:, None])

    def average_velocity(x: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None) -> Tensor:
        return predict(x, t, condition, duration)

    def bind(condition: Tensor | None) -> Callable[..., Tensor]:
        return lambda x, t, _, duration=None: predict(x, t, condition, duration)

    x, t, duration, condition = normal(3, 2, seed=1), uniform(3, seed=2), uniform(3, seed=3), normal(3, 2, seed=4)
    model = Field(AffinePath(), predict, "velocity", average_velocity, bind if binds else None)
    bound = model.at(condition).average_velocity
    assert bound is not None
    for other in (None, condition + 1.0):  # ignored: the field is bound to its own condition
        assert torch.equal(bound(x, t, duration, other), average_velocity(x, t, duration, condition))
    assert torch.equal(model.at(condition).velocity(x, t), predict(x, t, condition))


def test_a_field_without_average_velocities_has_none_at_one_condition() -> None:
    plain = Field(AffinePath(), lambda x, t, c: x)
    binding = Field(AffinePath(), lambda x, t, c: x, bind=lambda condition: lambda x, t, _: x)
    assert plain.at(None).average_velocity is None
    assert binding.at(None).average_velocity is None


@pytest.mark.parametrize("guidance", [0.0, 0.3, 1.0, 2.0])
def test_guidance_extrapolates_from_the_absent_to_the_present_condition(guidance: float) -> None:
    x, t, condition = normal(3, 2, seed=1), uniform(3, seed=2), normal(3, 2, seed=3)
    predict = guided(lambda x, t, c: torch.sin(x), lambda x, t, c: torch.sin(x) + c, guidance)
    torch.testing.assert_close(predict(x, t, condition), torch.sin(x) + guidance * condition)
