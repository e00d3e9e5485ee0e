import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, Field, Schedule
from flowmatch_rl.types import Prediction
from tests.families import SCHEDULES
from tests.oracles import F64, TWO_D, normal, uniform

PREDICTIONS: tuple[Prediction, ...] = get_args(Prediction)


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
