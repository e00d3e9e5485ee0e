"""Losses of policies and values that learn from a data set."""

import math

import pytest
import torch
from scipy.stats import expectile

from flowmatch_rl.checks import UserError
from flowmatch_rl.objectives import expectile_loss, tilt_divergence
from tests.oracles import F64


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_minimiser_is_the_expectile(level: float) -> None:
    target = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=F64).exp()
    value = torch.tensor(expectile(target.numpy(), level), dtype=F64, requires_grad=True)
    expectile_loss(value.expand(400), target, level).mean().backward()
    assert abs(float(value.grad)) < 1e-6
    above = (value.detach() + 0.1).requires_grad_()
    expectile_loss(above.expand(400), target, level).mean().backward()
    assert float(above.grad) > 1e-3


def test_an_expectile_out_of_range_and_other_shapes_are_refused() -> None:
    for level in (0.0, 1.0):
        with pytest.raises(UserError, match="expectile must"):
            expectile_loss(torch.zeros(3), torch.zeros(3), level)
    with pytest.raises(ValueError, match="shape"):
        expectile_loss(torch.zeros(3), torch.zeros(4), 0.5)


def test_the_divergence_is_that_of_a_tilted_normal() -> None:
    """Of N(0, 1) tilted by ``f(x) = c x``, which is N(c, 1): c^2 / 2."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    for slope in (0.0, 0.5, 1.0):
        assert float(tilt_divergence(slope * x)) == pytest.approx(0.5 * slope**2, abs=0.02)
    assert float(tilt_divergence(slope * x + 1e4)) == pytest.approx(float(tilt_divergence(slope * x)))
    best = torch.tensor([0.0, 0.0, 1e5, 0.0], dtype=F64)
    assert float(tilt_divergence(best)) == pytest.approx(math.log(4.0))
