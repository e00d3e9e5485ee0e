from typing import get_args

import pytest
import torch

from flowmatch_rl.objectives import ErrorOf, TimeWeight
from flowmatch_rl.paths import AffinePath, LinearSchedule, Schedule, VariancePreservingSchedule
from flowmatch_rl.types import Prediction
from tests.combinations import each_pair, one_test
from tests.families import SCHEDULES, TIME_WEIGHTS
from tests.oracles import F64, normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@each_pair
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("quantity", PREDICTIONS)
@pytest.mark.parametrize("source", PREDICTIONS)
def test_two_predictions_apart_are_that_far_apart_as_another_quantity(
    source: Prediction, quantity: Prediction, schedule: Schedule
) -> None:
    path, t = AffinePath(schedule), 0.05 + 0.9 * uniform(5, seed=1)
    x_t, one, other = (normal(5, 1, seed=seed) for seed in (2, 3, 4))
    as_one, as_other = (path.convert(value, x_t, t, source, quantity) for value in (one, other))
    expected = ((as_one - as_other) / (one - other)).square()[:, 0]
    torch.testing.assert_close(ErrorOf(quantity).weight(path, t, source), expected, rtol=1e-8, atol=1e-12)


def test_error_weights_have_their_textbook_values() -> None:
    t = torch.tensor([0.1, 0.5, 0.8], dtype=F64)
    linear, preserving = AffinePath(), AffinePath(VariancePreservingSchedule())
    # x_1 = x + (1 - t) v and x_0 = x - t v on the straight path.
    torch.testing.assert_close(ErrorOf("data").weight(linear, t), (1.0 - t).square())
    torch.testing.assert_close(ErrorOf("noise").weight(linear, t), t.square())
    torch.testing.assert_close(ErrorOf("velocity").weight(linear, t, "data"), (1.0 - t) ** -2)
    ratio = (preserving.schedule.alpha(t) / preserving.schedule.sigma(t)).square()
    torch.testing.assert_close(ErrorOf("data").weight(preserving, t, "noise"), 1.0 / ratio)
    torch.testing.assert_close(ErrorOf("noise").weight(preserving, t, "data"), ratio)
    torch.testing.assert_close(ErrorOf("noise").weight(preserving, t, "score"), preserving.schedule.sigma(t).square())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_error_measured_as_itself_counts_once(prediction: Prediction) -> None:
    t = torch.tensor([0.0, 0.3, 1.0], dtype=F64)
    assert torch.equal(ErrorOf(prediction).weight(AffinePath(), t, prediction), torch.ones_like(t))


@one_test
@pytest.mark.parametrize("weight", TIME_WEIGHTS, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (3, 3)])
def test_weights_keep_the_shape_and_type_of_the_times(
    weight: TimeWeight, prediction: Prediction, shape: tuple[int, ...]
) -> None:
    for dtype in (torch.float32, torch.float64):
        values = weight.weight(AffinePath(LinearSchedule(0.1)), torch.full(shape, 0.4, dtype=dtype), prediction)
        assert values.shape == shape
        assert values.dtype == dtype
        assert (values >= 0.0).all()
