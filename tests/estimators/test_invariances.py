import pytest
import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    ControlVariate,
    EndpointEstimate,
    PosteriorMeanEstimator,
    Proposal,
    boltzmann_density,
)
from flowmatch_rl.paths import AffinePath, Schedule, Squash, TanhSquash
from tests.combinations import each_pair, each_value
from tests.families import CONTROL_VARIATES, SCHEDULES, SQUASHES, WIDE_PROPOSALS
from tests.oracles import F64, NORMAL, at, normal

PATH = AffinePath()
B, K, D = 4, 9, 3
T = torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=F64)

every_rule = pytest.mark.parametrize("rule", CONTROL_VARIATES, ids=repr)
every_proposal = pytest.mark.parametrize("proposal", WIDE_PROPOSALS, ids=repr)


def q_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
    """A value that is symmetric in its dimensions."""
    total = action.sum(-1, keepdim=True)
    return torch.sin(total[..., 0]) + 0.5 * action.pow(3).sum(-1), torch.cos(total) + 1.5 * action.square()


def scaled(factor: float, shift: float = 0.0) -> object:
    def value_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = q_and_gradient(action)
        return factor * value + shift, factor * gradient

    return value_and_gradient


def estimate(
    rule: ControlVariate, proposal: Proposal, value: object, temperature: float, x_t: Tensor, t: Tensor, z: Tensor
) -> EndpointEstimate:
    density = boltzmann_density(value, temperature, TanhSquash())
    return PosteriorMeanEstimator(z.shape[1], proposal, rule).estimate(PATH, NORMAL, density, at(x_t, t), z)


def assert_equal_estimates(one: EndpointEstimate, other: EndpointEstimate) -> None:
    for name in ("x_0", "x_1", "eta", "effective_sample_size", "log_density_spread"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-8, atol=1e-8)


@each_value
@every_rule
@every_proposal
def test_a_constant_added_to_the_value_changes_nothing(rule: ControlVariate, proposal: Proposal) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    plain = estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z)
    for shift in (1e3, -1e3):
        assert_equal_estimates(estimate(rule, proposal, scaled(1.0, shift), 0.3, x_t, T, z), plain)


@each_value
@every_rule
@every_proposal
def test_value_and_temperature_scaled_together_change_nothing(rule: ControlVariate, proposal: Proposal) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    plain = estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z)
    for factor in (1e-3, 7.0, 1e4):
        assert_equal_estimates(estimate(rule, proposal, scaled(factor), factor * 0.3, x_t, T, z), plain)
    other = estimate(rule, proposal, scaled(7.0), 0.3, x_t, T, z)
    assert (other.effective_sample_size - plain.effective_sample_size).abs().amax() > 1e-3


@each_value
@every_rule
@every_proposal
def test_the_order_of_the_samples_does_not_matter(rule: ControlVariate, proposal: Proposal) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    order = torch.tensor([3, 1, 0, 2, 7, 8, 4, 6, 5])
    one = estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z)
    assert_equal_estimates(estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z[:, order]), one)


@each_value
@every_rule
@every_proposal
def test_states_permuted_give_the_estimates_permuted(rule: ControlVariate, proposal: Proposal) -> None:
    x_t, z, order = normal(B, D, seed=1), normal(B, K, D, seed=2), torch.tensor([2, 0, 3, 1])
    one = estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z)
    other = estimate(rule, proposal, q_and_gradient, 0.3, x_t[order], T[order], z[order])
    expected = EndpointEstimate(*(getattr(one, name)[order] for name in EndpointEstimate.__dataclass_fields__))
    assert_equal_estimates(other, expected)


@each_value
@every_rule
@every_proposal
def test_dimensions_permuted_give_the_estimates_permuted(rule: ControlVariate, proposal: Proposal) -> None:
    x_t, z, order = normal(B, D, seed=1), normal(B, K, D, seed=2), torch.tensor([2, 0, 1])
    one = estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z)
    other = estimate(rule, proposal, q_and_gradient, 0.3, x_t[:, order], T, z[:, :, order])
    expected = EndpointEstimate(
        one.x_0[:, order],
        one.x_1[:, order],
        one.weight,
        one.eta[:, order],
        one.effective_sample_size,
        one.log_density_spread,
    )
    assert_equal_estimates(other, expected)


@each_value
@every_rule
@every_proposal
@pytest.mark.parametrize("size", [1, 3])
def test_each_state_is_estimated_by_itself_when_all_sizes_are_equal(
    rule: ControlVariate, proposal: Proposal, size: int
) -> None:
    x_t, t, z = normal(size, size, seed=1), T[:size], normal(size, size, size, seed=2)
    together = estimate(rule, proposal, q_and_gradient, 0.3, x_t, t, z)
    for b in range(size):
        one = slice(b, b + 1)
        alone = estimate(rule, proposal, q_and_gradient, 0.3, x_t[one], t[one], z[one])
        expected = EndpointEstimate(*(getattr(together, name)[one] for name in EndpointEstimate.__dataclass_fields__))
        assert_equal_estimates(alone, expected)


@each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("squash", SQUASHES, ids=repr)
@every_rule
@every_proposal
def test_steep_values_far_points_and_the_ends_of_time_give_no_nan(
    rule: ControlVariate, proposal: Proposal, squash: Squash, schedule: Schedule, dtype: torch.dtype
) -> None:
    def steep(action: Tensor) -> tuple[Tensor, Tensor]:
        # Values of 1e5 temperatures. Where nothing bounds the action, a cosine does.
        return 1e5 * torch.cos(action).sum(-1), -1e5 * torch.sin(action)

    x_t = torch.tensor([[0.0, 0.3], [1e3, -1e3], [1.0, 1e3], [-1e3, 0.0]], dtype=dtype).repeat(2, 1)
    t = torch.tensor([0.01] * 4 + [0.99] * 4, dtype=dtype)
    z = normal(8, 20, 2, seed=3, dtype=dtype)
    density = boltzmann_density(steep, 1.0, squash)
    path = AffinePath(schedule)
    points = at(x_t, t)
    found = PosteriorMeanEstimator(20, proposal, rule).estimate(path, NORMAL, density, points, z)
    target = points.with_pair(found.x_0, found.x_1).target(path, "velocity")
    for values in (target, found.x_0, found.x_1, found.eta, found.effective_sample_size, found.log_density_spread):
        assert values.dtype == dtype
        assert values.isfinite().all()
    # In float32 the squares of normalised weights may add up to a little more than 1.
    assert (found.effective_sample_size > 1.0 - 1e-5).all()


@each_value
@every_rule
@every_proposal
def test_single_precision_agrees_with_double(rule: ControlVariate, proposal: Proposal) -> None:
    x_t, z = normal(B, D, seed=1), normal(B, K, D, seed=2)
    double = estimate(rule, proposal, q_and_gradient, 0.3, x_t, T, z)
    single = estimate(rule, proposal, q_and_gradient, 0.3, x_t.float(), T.float(), z.float())
    torch.testing.assert_close(single.x_1.double(), double.x_1, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(single.x_0.double(), double.x_0, rtol=1e-3, atol=1e-3)
