"""The continuity equation, where density and velocity are known."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import AffinePath, GaussianMixture, Schedule
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import continuity_terms
from tests import oracles
from tests.families import SCHEDULES
from tests.oracles import F64, normal, uniform

DRIFT, SCALE = torch.tensor([0.7, -0.4], dtype=F64), 0.6


def shifted(x: Tensor, t: Tensor) -> Tensor:
    """Log-density of a normal whose mean moves at a constant rate."""
    offset = x - append_dims(t, like=x) * DRIFT
    return -0.5 * offset.square().sum(-1) / SCALE**2 - math.log(2.0 * math.pi * SCALE**2)


@pytest.mark.parametrize("batch", [(1,), (2,), (3, 4)], ids=str)
def test_the_terms_of_a_moving_normal_are_those_of_its_closed_form(batch: tuple[int, ...]) -> None:
    x, t = normal(*batch, 2, seed=0), uniform(*batch, seed=1)
    terms = continuity_terms(shifted, lambda x, t, condition: DRIFT.expand_as(x), x, t)
    density = shifted(x, t).exp()
    rate = density * ((x - t[..., None] * DRIFT) * DRIFT).sum(-1) / SCALE**2
    torch.testing.assert_close(terms.density, density)
    torch.testing.assert_close(terms.rate, rate)
    torch.testing.assert_close(terms.flux, density[..., None] * DRIFT)
    torch.testing.assert_close(terms.divergence, -rate)
    assert terms.residual.abs().max() < 1e-14


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_mixture_is_carried_by_its_own_velocity_and_no_faster_one(schedule: Schedule) -> None:
    path = AffinePath(schedule)
    mixture = GaussianMixture(oracles.TWO_D.weights, oracles.TWO_D.means, oracles.TWO_D.scales)
    velocity = mixture.field(path)
    t = 0.02 + 0.96 * uniform(40, seed=2)
    x = path.sample(normal(40, 2, seed=3), oracles.TWO_D.draw(40, seed=4), t)

    def log_density(x: Tensor, t: Tensor) -> Tensor:
        return mixture.marginal_log_prob(path, x, t)

    own = continuity_terms(log_density, velocity, x, t)
    faster = continuity_terms(log_density, lambda x, t, condition: 1.1 * velocity(x, t, condition), x, t)
    size = own.rate.square().mean().sqrt()
    assert own.residual.abs().max() < 1e-9 * size
    assert faster.residual.square().mean().sqrt() > 0.05 * size


def test_the_velocity_gets_the_condition() -> None:
    x, t = normal(5, 2, seed=0), uniform(5, seed=1)
    terms = continuity_terms(shifted, lambda x, t, condition: condition.expand_as(x), x, t, DRIFT)
    assert terms.residual.abs().max() < 1e-14
