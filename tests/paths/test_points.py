"""Points of a path and the pairs of endpoints that they were made of."""

from typing import get_args

import pytest
import torch

from flowmatch_rl.paths import AffinePath, LinearSchedule, PathPoints, Schedule
from flowmatch_rl.types import Prediction
from tests.families import SCHEDULES
from tests.oracles import F64, TWO_D, normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


@pytest.mark.parametrize(("batch", "dims"), [(1, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_points_lie_between_their_endpoints_and_have_their_targets(schedule: Schedule, batch: int, dims: int) -> None:
    path, x_0, x_1 = AffinePath(schedule), normal(batch, dims, seed=1), normal(batch, dims, seed=2)
    t = 0.1 + 0.8 * uniform(batch, seed=3)
    points = PathPoints.between(path, x_0, x_1, t)
    assert points.duration is None
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    torch.testing.assert_close(points.x_t, alpha * x_1 + sigma * x_0)
    wanted = {
        "velocity": schedule.d_alpha(t)[:, None] * x_1 + schedule.d_sigma(t)[:, None] * x_0,
        "data": x_1,
        "noise": x_0,
        "score": -x_0 / sigma,
    }
    for prediction in PREDICTIONS:
        torch.testing.assert_close(points.target(path, prediction), wanted[prediction])


def test_durations_are_kept() -> None:
    x, t, duration = normal(4, 2, seed=1), uniform(4, seed=2), uniform(4, seed=3)
    points = PathPoints.between(AffinePath(), x, x, t, duration)
    assert points.duration is duration
    assert points.with_pair(2.0 * x, x).duration is duration


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_another_pair_changes_the_targets_and_not_the_points(prediction: Prediction) -> None:
    path, t = AffinePath(LinearSchedule(0.1)), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    points = PathPoints.between(path, normal(3, 2, seed=1), normal(3, 2, seed=2), t)
    means = TWO_D.posterior_means(points.x_t, path.schedule.alpha(t), path.schedule.sigma(t))
    found = points.with_pair(*means)
    assert found.x_t is points.x_t
    assert found.t is points.t
    torch.testing.assert_close(path.sample(*means, t), points.x_t)  # these means lie on a path through the points
    torch.testing.assert_close(found.target(path, prediction), path.target(prediction, *means, t))
    assert not torch.allclose(found.target(path, prediction), points.target(path, prediction))


@pytest.mark.parametrize("shape", [(4, 1), (3,), (1, 3), (3, 4)])
def test_endpoints_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    x, t = torch.zeros(4, 3), torch.full((4,), 0.5)
    for pair in ((torch.zeros(shape), x), (x, torch.zeros(shape))):
        with pytest.raises(ValueError, match="equal shapes"):
            PathPoints.between(AffinePath(), *pair, t)
        with pytest.raises(ValueError, match="equal shapes"):
            PathPoints.between(AffinePath(), x, x, t).with_pair(*pair).target(AffinePath(), "velocity")


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 3, 1)])
def test_times_that_are_not_those_of_the_batch_are_refused(shape: tuple[int, ...]) -> None:
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="prefix"):
        PathPoints.between(AffinePath(), x, x, torch.zeros(shape))
