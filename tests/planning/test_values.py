import math
import warnings

import pytest
import torch
from torch import Tensor

from flowmatch_rl.planning import estimate_from_rewards, estimate_value, monte_carlo_value
from tests.combinations import each_value, one_test
from tests.oracles import F64, normal, uniform
from tests.planning.chains import Chain, line_chain, midpoints, random_chain

CHAINS = [random_chain(), random_chain(num_states=3, num_actions=1, num_members=1, seed=5), line_chain()]
DISCOUNTS = [0.0, 0.5, 0.99]


def all_laws(chain: Chain, discount: float | Tensor) -> Tensor:
    """Exact futures of every member, state and action, one draw each, shape (W, S, A, 1, S)."""
    return torch.stack([chain.occupancy(member, discount) for member in chain.members])[..., None, :]


@each_value
@pytest.mark.parametrize("chain", CHAINS, ids=["random", "single", "line"])
@pytest.mark.parametrize("discount", DISCOUNTS)
def test_the_value_of_exact_futures_solves_the_bellman_equation_for_every_reward(chain: Chain, discount: float) -> None:
    laws = all_laws(chain, discount)
    for reward in normal(3, chain.num_states, seed=2):
        value = estimate_value(laws, lambda x, reward=reward: x @ reward, discount).value
        exact = torch.stack([chain.action_value(member, reward, discount) for member in chain.members])
        torch.testing.assert_close(value, exact)


@pytest.mark.parametrize("discount", [0.5, 0.99])
def test_futures_with_the_current_state_give_the_same_value_once_they_are_said_to_have_it(discount: float) -> None:
    chain = CHAINS[0]
    reward = normal(chain.num_states, seed=2)
    laws = all_laws(chain, discount)
    here = chain.starts[:, None, :].expand(*laws.shape[:3], chain.num_states)
    mixed = (1.0 - discount) * here[..., None, :] + discount * laws
    plain = estimate_value(laws, lambda x: x @ reward, discount).value
    torch.testing.assert_close(estimate_value(mixed, lambda x: x @ reward, discount, here).value, plain)
    assert (estimate_value(mixed, lambda x: x @ reward, discount).value - plain).abs().max() > 0.05


def test_the_standard_error_with_the_current_state_is_that_of_the_value_it_belongs_to() -> None:
    draws = normal(4000, 20, 1, seed=0)
    estimate = estimate_value(draws, lambda x: x[..., 0], 0.8, torch.full((4000, 1), 3.0, dtype=F64))
    assert estimate.value.mean().item() == pytest.approx(-3.0 / 0.8, abs=0.1)
    assert estimate.standard_error.square().mean().item() == pytest.approx(estimate.value.var().item(), rel=0.05)


def test_futures_that_are_the_current_state_have_no_value() -> None:
    with pytest.raises(ValueError, match="no value at discount 0"):
        estimate_value(torch.zeros(2, 4, 3), lambda x: x[..., 0], 0.0, torch.zeros(2, 3))


def test_the_value_is_linear_in_the_reward() -> None:
    futures = normal(4, 30, 3, seed=0)

    def first(x: Tensor) -> Tensor:
        return x[..., 0].exp()

    def second(x: Tensor) -> Tensor:
        return x.prod(-1)

    both = estimate_value(futures, lambda x: 2.0 * first(x) - 3.0 * second(x) + 0.5, 0.9).value
    parts = [estimate_value(futures, reward, 0.9).value for reward in (first, second)]
    torch.testing.assert_close(both, 2.0 * parts[0] - 3.0 * parts[1] + 0.5 / (1.0 - 0.9))


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_squared_standard_error_is_on_average_the_variance_of_the_estimate(count: int) -> None:
    chain, discount = CHAINS[0], 0.9
    noise = uniform(20_000, count, 1, seed=count)
    state, action = torch.full((20_000, 1), 2.0, dtype=F64), torch.ones(20_000, 1, dtype=F64)
    draws = chain.sampled(noise, state, action, torch.zeros(20_000, 1, dtype=F64), discount)
    reward = normal(chain.num_states, seed=2)
    estimate = estimate_value(draws, lambda x: reward[x[..., 0].long()], discount)
    exact = chain.action_value(chain.members[0], reward, discount)[2, 1]
    error = estimate.value - exact
    assert error.mean().abs() < 4.0 * error.std() / math.sqrt(len(error))
    assert estimate.standard_error.square().mean().item() == pytest.approx(error.square().mean().item(), rel=0.04)


def test_a_single_draw_has_a_value_and_an_unknown_standard_error() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = estimate_value(torch.full((1, 1, 2), 3.0), lambda x: x[..., 0], 0.5)
    assert estimate.value.tolist() == [6.0]
    assert estimate.standard_error.isnan().all()


def test_each_sample_may_have_its_own_discount() -> None:
    futures, here = normal(3, 2, 10, 4, seed=0), normal(3, 2, 4, seed=1)
    discounts = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    for current in (None, here):
        together = estimate_value(futures, lambda x: x[..., 1], discounts, current)
        for i, discount in enumerate(discounts.tolist()):
            alone = estimate_value(futures[i], lambda x: x[..., 1], discount, None if current is None else current[i])
            torch.testing.assert_close(together.value[i], alone.value)
            torch.testing.assert_close(together.standard_error[i], alone.standard_error)


def test_a_discount_next_to_one_is_not_rounded_to_it() -> None:
    assert estimate_from_rewards(torch.ones(3, dtype=F64), 1.0 - 1e-9).value.item() == pytest.approx(1e9)


@one_test
@pytest.mark.parametrize("discount", [1.0, -0.1, math.nan, torch.tensor([0.5, 1.0])])
def test_a_discount_out_of_range_is_refused(discount: float | Tensor) -> None:
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\), got"):
        estimate_from_rewards(torch.zeros(2, 5), discount)
    if isinstance(discount, float):
        with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\), got"):
            monte_carlo_value(torch.zeros(5), torch.zeros(5, dtype=torch.bool), discount)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reward of the states of shape \(2, 4\), got \(2, 4, 1\)"):
        estimate_value(torch.zeros(2, 4, 1), lambda x: x, 0.5)
    with pytest.raises(ValueError, match="K at least 1"):
        estimate_from_rewards(torch.zeros(2, 0), 0.5)
    with pytest.raises(ValueError, match="prefix"):
        estimate_from_rewards(torch.zeros(2, 5), torch.full((5,), 0.5))
    with pytest.raises(ValueError, match=r"current_state of shape \(2, 3\), got \(3,\)"):
        estimate_value(torch.zeros(2, 4, 3), lambda x: x[..., 0], 0.5, torch.zeros(3))
    with pytest.raises(ValueError, match=r"ended of shape \(4, 2\)"):
        monte_carlo_value(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.bool), 0.5)
    with pytest.raises(ValueError, match=r"ended must be boolean, got torch\.float32"):
        monte_carlo_value(torch.zeros(4), torch.zeros(4), 0.5)
    with pytest.raises(ValueError, match="T at least 1"):
        monte_carlo_value(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.bool), 0.5)


@pytest.mark.parametrize("discount", DISCOUNTS)
def test_rollouts_of_a_deterministic_chain_have_its_value_up_to_what_is_missing(discount: float) -> None:
    chain, steps = line_chain(), 12
    reward = normal(chain.num_states, seed=4)
    for member in chain.members:
        law = chain.starts
        laws = torch.stack([law := law @ chain.followed(member) for _ in range(steps)])
        rollout = monte_carlo_value(laws @ reward, torch.zeros(steps, chain.num_states, dtype=torch.bool), discount)
        missing = chain.value(member, reward, discount) - rollout.value
        torch.testing.assert_close(
            rollout.missing_weight, torch.full_like(missing, discount**steps / (1.0 - discount)), rtol=1e-12, atol=0.0
        )
        assert (missing.abs() <= rollout.missing_weight * reward.abs().max() + 1e-12).all()
        rest = torch.linalg.matrix_power(chain.followed(member), steps) @ chain.value(member, reward, discount)
        torch.testing.assert_close(missing, discount**steps * rest)


def test_the_bound_on_what_is_missing_is_reached() -> None:
    long = monte_carlo_value(torch.full((2000,), -2.0, dtype=F64), torch.zeros(2000, dtype=torch.bool), 0.9)
    short = monte_carlo_value(torch.full((7,), -2.0, dtype=F64), torch.zeros(7, dtype=torch.bool), 0.9)
    assert (short.value - long.value).item() == pytest.approx(2.0 * short.missing_weight.item())


@each_value
@pytest.mark.parametrize("discount", DISCOUNTS)
@pytest.mark.parametrize("end", [1, 3, 6])
def test_the_reward_of_a_terminal_state_goes_on_for_ever(discount: float, end: int) -> None:
    rewards = normal(6, 2, seed=0)
    at = torch.arange(1, 7)[:, None].expand(6, 2)
    exact = sum(discount**k * rewards[k] for k in range(end)) + discount**end / (1.0 - discount) * rewards[end - 1]
    for ended in (at >= end, at == end):  # flags that stay up, and flags that only mark the moment
        rollout = monte_carlo_value(rewards, ended, discount)
        torch.testing.assert_close(rollout.value, exact)
        assert rollout.missing_weight.tolist() == [0.0, 0.0]


def test_what_follows_the_end_of_a_rollout_is_not_looked_at() -> None:
    rewards = normal(6, seed=0)
    ended = torch.arange(6) >= 2
    plain = monte_carlo_value(rewards, ended, 0.9)
    spoilt = monte_carlo_value(torch.where(torch.arange(6) > 2, math.nan, rewards), ended, 0.9)
    assert spoilt.value.item() == plain.value.item()


def test_rollouts_in_one_batch_end_on_their_own() -> None:
    rewards = normal(5, 2, 3, seed=0)
    ended = uniform(5, 2, 3, seed=1) > 0.85
    together = monte_carlo_value(rewards, ended, 0.8)
    assert 0 < int((together.missing_weight == 0.0).sum()) < 6
    for i in range(2):
        for j in range(3):
            alone = monte_carlo_value(rewards[:, i, j], ended[:, i, j], 0.8)
            torch.testing.assert_close(together.value[i, j], alone.value)
            torch.testing.assert_close(together.missing_weight[i, j], alone.missing_weight)


def test_padding_after_the_known_steps_is_not_looked_at() -> None:
    rewards, ended = normal(5, 2, 3, seed=0), uniform(5, 2, 3, seed=1) > 0.85
    length = torch.tensor([[1, 2, 3], [4, 5, 2]])
    padding = torch.arange(5)[:, None, None] >= length
    spoilt = monte_carlo_value(rewards.masked_fill(padding, math.nan), ended | padding, 0.8, length)
    for i in range(2):
        for j in range(3):
            known = int(length[i, j])
            alone = monte_carlo_value(rewards[:known, i, j], ended[:known, i, j], 0.8)
            torch.testing.assert_close(spoilt.value[i, j], alone.value)
            torch.testing.assert_close(spoilt.missing_weight[i, j], alone.missing_weight)
    assert 0 < int((spoilt.missing_weight == 0.0).sum()) < 6


@pytest.mark.parametrize("length", [torch.tensor([0, 2]), torch.tensor([1, 5]), torch.tensor([1.0, 2.0])])
def test_a_length_that_is_no_number_of_steps_is_refused(length: Tensor) -> None:
    with pytest.raises(ValueError, match=r"length must be whole numbers in 1, \.\.\., 4, got"):
        monte_carlo_value(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool), 0.5, length)
    with pytest.raises(ValueError, match=r"expected length of shape \(2,\), got \(1,\)"):
        monte_carlo_value(torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.bool), 0.5, torch.ones(1).long())


def test_quantiles_of_the_futures_give_the_value_that_rollouts_give() -> None:
    chain, discount = line_chain(), 0.9
    reward = torch.linspace(-1.0, 2.0, chain.num_states, dtype=F64)
    state, member = torch.tensor([[3.0]], dtype=F64), torch.tensor([[2.0]], dtype=F64)
    action = chain.act_at(state, member)
    draws = chain.sampled(midpoints(20_000)[None, :, None], state, action, member, discount)
    modelled = estimate_value(draws, lambda x: reward[x[..., 0].long()], discount).value.item()
    exact = chain.value(chain.members[2], reward, discount)[3].item()
    assert modelled == pytest.approx(exact, abs=5e-3)
