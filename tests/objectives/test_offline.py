"""Losses of policies and values that learn from a data set."""

import math

import pytest
import torch
from scipy.stats import expectile

from flowmatch_rl.checks import UserError
from flowmatch_rl.objectives import expectile_loss, tilt_divergence, tilted_actions
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


def test_tilted_actions_are_drawn_by_the_softmax_of_their_state() -> None:
    log_weights = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]], dtype=F64)
    actions = torch.arange(12, dtype=F64).view(2, 3, 2)
    uniform = torch.rand(2, 40_000, generator=torch.Generator().manual_seed(0), dtype=F64)
    drawn = tilted_actions(actions, log_weights + 1e3, uniform)
    assert drawn.shape == (2, 40_000, 2)
    found = (drawn[:, :, None] == actions[:, None]).all(-1).double().mean(1)
    torch.testing.assert_close(found, log_weights.softmax(-1), atol=0.01, rtol=0.0)


@pytest.mark.parametrize(
    "uniform", [torch.tensor([[0.0, 0.5, 1.0 - 2.0**-24]]), torch.full((1, 3), 1.0 - 2.0**-53, dtype=F64)]
)
def test_an_action_without_weight_is_never_drawn(uniform: torch.Tensor) -> None:
    actions = torch.arange(4.0)[None, :, None]
    best = torch.tensor([[0.0, 0.0, 1e4, 0.0]])
    assert tilted_actions(actions, best, uniform).flatten().tolist() == [2.0] * 3
    # In float32 the first three of these weights sum to less than the noise.
    rounded = torch.tensor([[0.0, 4.0, 4.0, -1e4]])
    assert tilted_actions(actions, rounded, uniform)[0, -1].tolist() == [2.0]


def test_weights_that_are_not_finite_draw_some_action() -> None:
    drawn = tilted_actions(torch.ones(1, 2, 1), torch.full((1, 2), torch.nan), torch.tensor([[0.5]]))
    assert drawn.tolist() == [[[1.0]]]


def test_tilted_actions_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="log_weights"):
        tilted_actions(torch.zeros(2, 3, 1), torch.zeros(3, 2), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="uniform"):
        tilted_actions(torch.zeros(2, 3, 1), torch.zeros(2, 3), torch.zeros(1, 4))
