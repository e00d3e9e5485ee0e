import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.paths import ClipSquash, NoSquash, Squash, TanhSquash
from tests.combinations import each_value, one_test
from tests.families import SQUASHES
from tests.oracles import F64, normal

INVERTIBLE: list[Squash] = [TanhSquash(), NoSquash()]


def value_of(action: Tensor) -> Tensor:
    """A log-density over actions with unequal slopes in every dimension."""
    slope = torch.arange(1, action.shape[-1] + 1, dtype=action.dtype)
    return (slope * action).sum(-1) - action.pow(3).sum(-1) + action.prod(-1)


def value_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        action = action.detach().requires_grad_()
        value = value_of(action)
        (gradient,) = torch.autograd.grad(value.sum(), action)
    return value.detach(), gradient


@each_value
@pytest.mark.parametrize("squash", INVERTIBLE, ids=repr)
@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 4, 3)])
def test_the_pulled_back_density_has_the_jacobian_of_the_map_and_its_own_gradient(
    squash: Squash, shape: tuple[int, ...]
) -> None:
    u = (2.0 * normal(*shape, seed=1)).requires_grad_()
    action = squash.action(u)
    (slope,) = torch.autograd.grad(action.sum(), u, create_graph=True)  # elementwise: the Jacobian's diagonal
    expected = value_of(action) + slope.log().sum(-1)
    (score,) = torch.autograd.grad(expected.sum(), u)
    pulled, pulled_score = squash.pull_back(*value_and_gradient(squash.action(u.detach())), u.detach())
    assert pulled.shape == shape[:-1]
    torch.testing.assert_close(squash.log_jacobian(u.detach()), slope.log().sum(-1).detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pulled, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pulled_score, score, rtol=1e-10, atol=1e-10)


@each_value
@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
@pytest.mark.parametrize("shape", [(3, 3), (1, 1), (2, 4, 3)])
def test_the_latent_gradient_is_that_of_a_function_of_the_action(squash: Squash, shape: tuple[int, ...]) -> None:
    u = (2.0 * normal(*shape, seed=1)).requires_grad_()
    (expected,) = torch.autograd.grad(value_of(squash.action(u)).sum(), u)
    _, gradient = value_and_gradient(squash.action(u.detach()))
    torch.testing.assert_close(squash.latent_gradient(gradient, u.detach()), expected, rtol=1e-12, atol=1e-12)


def test_clipping_goes_on_with_the_value_at_the_edge_and_no_slope() -> None:
    squash = ClipSquash(limit=0.8)
    u = torch.tensor([[0.5, 0.3], [0.9, 0.3], [-3.0, 7.0], [0.8, -0.8]], dtype=F64)
    action = torch.tensor([[0.5, 0.3], [0.8, 0.3], [-0.8, 0.8], [0.8, -0.8]], dtype=F64)
    torch.testing.assert_close(squash.action(u), action, rtol=0.0, atol=0.0)
    torch.testing.assert_close(squash.latent(u), action, rtol=0.0, atol=0.0)
    value, gradient = value_and_gradient(action)
    pulled, score = squash.pull_back(value, gradient, u)
    assert torch.equal(pulled, value)
    free = torch.tensor([[True, True], [False, True], [False, False], [True, True]])
    assert (gradient != 0.0).all()
    assert torch.equal(score, torch.where(free, gradient, 0.0))
    assert torch.equal(squash.log_jacobian(u), torch.zeros(4, dtype=F64))


@pytest.mark.parametrize("squash", INVERTIBLE, ids=repr)
def test_latent_inverts_action_and_both_are_increasing(squash: Squash) -> None:
    u = torch.linspace(-4.0, 4.0, 81, dtype=F64)
    action = squash.action(u)
    torch.testing.assert_close(squash.latent(action), u)
    assert (action.diff() > 0).all()
    assert (squash.latent(action).diff() > 0).all()


@each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [0.5, 0.9, 1.0 - 1e-4])
def test_actions_at_and_beyond_the_bounds_are_clipped_to_the_limit(limit: float, dtype: torch.dtype) -> None:
    squash = TanhSquash(limit)
    action = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.3, 1.0, 1.5], dtype=dtype)
    recovered = squash.action(squash.latent(action))
    torch.testing.assert_close(recovered, action.clamp(-limit, limit))


@each_value
@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_latents_stay_finite(squash: Squash, dtype: torch.dtype) -> None:
    u = torch.tensor([[-1e3, 1e3], [1e3, 0.0], [0.0, 0.0], [1e4, -1e4]], dtype=dtype)
    pulled, score = squash.pull_back(torch.zeros(4, dtype=dtype), torch.full_like(u, 1e5), u)
    assert pulled.dtype == score.dtype == dtype
    assert pulled.isfinite().all()
    assert score.isfinite().all()


def test_far_from_zero_the_log_jacobian_is_a_straight_line() -> None:
    u = torch.tensor([[1e3], [-1e3], [40.0]], dtype=F64)
    pulled, score = TanhSquash().pull_back(torch.zeros(3, dtype=F64), torch.zeros_like(u), u)
    torch.testing.assert_close(pulled, 2.0 * math.log(2.0) - 2.0 * u.abs()[:, 0])
    torch.testing.assert_close(score, -2.0 * u.sign())


def test_a_flat_value_gives_uniform_actions() -> None:
    u = torch.linspace(-30.0, 30.0, 60001, dtype=F64)[:, None]
    log_density, _ = TanhSquash().pull_back(torch.zeros(len(u), dtype=F64), torch.zeros_like(u), u)
    mass = log_density.exp() * (u[1, 0] - u[0, 0])
    assert mass.sum().item() == pytest.approx(2.0, rel=1e-9)
    action = torch.tanh(u[:, 0])
    for power in range(1, 7):
        moment = (mass * action**power).sum().item() / 2.0
        assert moment == pytest.approx(1.0 / (power + 1) if power % 2 == 0 else 0.0, abs=1e-9)


@one_test
@pytest.mark.parametrize("limit", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_a_limit_that_cannot_be_inverted_is_named(limit: float) -> None:
    with pytest.raises(ValueError, match=str(limit)):
        TanhSquash(limit)


@pytest.mark.parametrize("limit", [0.0, -0.5, math.nan])
def test_a_clip_that_is_not_positive_is_named(limit: float) -> None:
    with pytest.raises(ValueError, match=str(limit)):
        ClipSquash(limit)
