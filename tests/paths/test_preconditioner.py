"""What a network is asked for at its start."""

from typing import get_args

import pytest
import torch

from flowmatch_rl.paths import AffinePath, CosineSchedule, Preconditioner
from flowmatch_rl.types import Prediction
from tests.combinations import each_value
from tests.families import SCHEDULES
from tests.oracles import normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)
B, D = 4000, 2


def pairs(path: AffinePath):
    """Independent standard normal ends of a path, and a point between them."""
    x_0, x_1 = normal(B, D, seed=1), normal(B, D, seed=2)
    t = 0.05 + 0.9 * uniform(1, seed=3)
    return x_0, x_1, path.sample(x_0, x_1, t.expand(B)), t.expand(B)


def nothing(x, t, condition=None, duration=None):
    return torch.zeros_like(x)


@each_value
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_network_that_says_nothing_stands_for_standard_normal_data(schedule, prediction, scales) -> None:
    path = AffinePath(schedule)
    x_0, x_1, x_t, t = pairs(path)
    guess = Preconditioner(path, prediction, scales, guesses=True).complete(nothing)(x_t, t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    variance = alpha**2 + sigma**2
    wanted = path.target(prediction, sigma / variance * x_t, alpha / variance * x_t, t)
    torch.testing.assert_close(guess, wanted)
    # It is the regression of the target on the point.
    target = path.target(prediction, x_0, x_1, t)
    slope = (target * x_t).sum() / x_t.square().sum()
    noise = target.square().mean().sqrt() / x_t.square().mean().sqrt() / (B * D) ** 0.5
    torch.testing.assert_close(guess / x_t, slope.expand_as(x_t), atol=5.0 * float(noise), rtol=0)


@each_value
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_scaled_network_sees_and_answers_at_unit_variance(schedule, prediction) -> None:
    path, seen = AffinePath(schedule), []
    x_0, x_1, x_t, t = pairs(path)

    def ones(x, t, condition=None, duration=None):
        seen.append(x)
        return torch.ones_like(x)

    unit = Preconditioner(path, prediction, scales=True).complete(ones)(x_t, t)
    assert float(seen[0].std()) == pytest.approx(1.0, abs=0.05)
    target = path.target(prediction, x_0, x_1, t)
    torch.testing.assert_close(unit.mean(), target.square().mean().sqrt(), rtol=0.05, atol=0)
    torch.testing.assert_close(seen[0] / x_t, (seen[0] / x_t)[0, 0].expand(B, D))


def test_network_is_left_as_it_is_where_nothing_is_wanted() -> None:
    assert Preconditioner(AffinePath(), "noise").complete(nothing) is nothing


@pytest.mark.parametrize(("scales", "guesses"), [(True, False), (False, True), (True, True)])
def test_condition_and_duration_are_handed_on(scales, guesses) -> None:
    calls = []

    def network(x, t, *rest):
        calls.append(rest)
        return torch.zeros_like(x)

    complete = Preconditioner(AffinePath(CosineSchedule()), "data", scales, guesses).complete(network)
    x, t, condition = normal(3, D, seed=1), uniform(3, seed=2), normal(3, 4, seed=3)
    complete(x, t, condition)
    complete(x, t, condition, t)
    complete(x, t)
    assert [len(rest) for rest in calls] == [1, 2, 1]
    assert calls[0][0] is condition
    assert calls[1][1] is t
    assert calls[2] == (None,)


@pytest.mark.parametrize(
    "t", [torch.tensor(0.3), torch.tensor([0.3]), torch.tensor([[0.3], [0.6]])], ids=["0", "1", "2"]
)
def test_times_are_a_prefix_of_the_batch(t) -> None:
    x = normal(*(t.shape or (1,)), D, seed=1) if t.dim() < 2 else normal(2, 1, D, seed=1)
    found = Preconditioner(AffinePath(), "noise", True, True).complete(nothing)(x, t.double())
    time = t.double().reshape(*t.shape, *[1] * (x.dim() - t.dim()))
    torch.testing.assert_close(found, (1.0 - time) / (time**2 + (1.0 - time) ** 2) * x)
