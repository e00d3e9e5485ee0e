import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowmatch_rl.planning import best_single, estimate_value, improve
from tests.oracles import F64, normal, uniform
from tests.planning.chains import Chain, line_chain, random_chain

DISCOUNT = 0.9
CHAIN = random_chain()
ONE = torch.zeros(1, CHAIN.num_states, dtype=F64)
"""Noise of a single draw, which a model that returns whole laws does not look at."""


def paid(rewards: Tensor) -> Callable[[Tensor], Tensor]:
    """The reward of laws on states, and of states given by their number."""
    return lambda x: x @ rewards if x.shape[-1] == len(rewards) else rewards[x[..., 0].long()]


def own_values(chain: Chain, rewards: Tensor, discount: float = DISCOUNT) -> Tensor:
    """Value of each member at each state, by its Bellman equation, shape (S, W)."""
    return torch.stack([chain.value(member, rewards, discount) for member in chain.members], -1)


def smooth(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor) -> Tensor:
    """A model with states, actions, members and noise of different dimensions."""
    assert isinstance(discount, float)
    shift = state.sum(-1) + 2.0 * action.sum(-1) - embedding.square().sum(-1)
    return noise * discount + shift[..., None, None]


def lean(state: Tensor, embedding: Tensor) -> Tensor:
    """A family with two actions."""
    return torch.stack([state[..., 0] + embedding.sum(-1), state[..., 1]], -1)


def first_of(x: Tensor) -> Tensor:
    return x[..., 0].tanh()


@pytest.mark.parametrize("seed", range(5))
def test_with_an_exact_model_the_member_of_the_highest_value_is_chosen_at_every_state(seed: int) -> None:
    rewards = normal(CHAIN.num_states, seed=seed)
    plan = improve(CHAIN.futures, CHAIN.act, CHAIN.starts, CHAIN.embeddings, ONE, paid(rewards), DISCOUNT)
    exact = own_values(CHAIN, rewards)
    torch.testing.assert_close(plan.values, exact)
    assert plan.index.tolist() == exact.argmax(1).tolist()
    assert len(set(plan.index.tolist())) > 1 or seed > 0
    here = torch.arange(CHAIN.num_states)
    assert torch.equal(plan.action[here, here], CHAIN.members[plan.index, here].double())


@pytest.mark.parametrize(("end", "member"), [(0, 0), (4, 1)])
def test_a_reward_at_an_end_of_the_line_calls_the_member_that_walks_there(end: int, member: int) -> None:
    chain = line_chain()
    rewards = torch.zeros(chain.num_states, dtype=F64)
    rewards[end] = 1.0
    members = chain.embeddings[:2]
    noise = torch.zeros(1, chain.num_states, dtype=F64)
    assert (
        improve(chain.futures, chain.act, chain.starts, members, noise, paid(rewards), DISCOUNT).index.tolist()
        == [member] * chain.num_states
    )
    assert best_single(chain.futures, chain.act, chain.starts, members, noise, paid(rewards), DISCOUNT).index == member


def test_choosing_anew_at_every_step_is_at_least_as_good_as_every_member() -> None:
    gains = []
    for seed in range(20):
        chain = random_chain(seed=seed)
        rewards = normal(chain.num_states, seed=seed)
        plan = improve(chain.futures, chain.act, chain.starts, chain.embeddings, ONE, paid(rewards), DISCOUNT)
        here = torch.arange(chain.num_states)
        chosen = chain.value(plan.action[here, here].long(), rewards, DISCOUNT)
        gains.append(chosen - own_values(chain, rewards).amax(1))
    gain = torch.stack(gains)
    assert gain.min() > -1e-12
    assert (gain > 1e-3).double().mean() > 0.2


def test_one_more_candidate_never_lowers_the_highest_value() -> None:
    noise, states = normal(7, 3, seed=0), normal(5, 2, seed=1)
    candidates = normal(9, 4, seed=2)
    highest = [
        improve(smooth, lean, states, candidates[:count], noise, first_of, DISCOUNT).values.amax(1)
        for count in range(1, 10)
    ]
    assert all((more >= less).all() for less, more in itertools.pairwise(highest))


def test_equal_candidates_have_equal_values_to_the_last_digit_and_the_first_is_chosen() -> None:
    noise = uniform(33, 1, seed=0)
    state = torch.arange(CHAIN.num_states, dtype=F64)[:, None]
    twins = CHAIN.embeddings[[2, 1, 2, 1]]
    rewards = normal(CHAIN.num_states, seed=2)
    plan = improve(CHAIN.sampled, CHAIN.act_at, state, twins, noise, paid(rewards), DISCOUNT)
    assert torch.equal(plan.values[:, :2], plan.values[:, 2:])
    assert torch.equal(plan.standard_error[:, :2], plan.standard_error[:, 2:])
    assert (plan.index < 2).all()


def test_the_values_are_those_of_each_candidate_alone_with_the_same_noise() -> None:
    noise, states, candidates = normal(7, 3, seed=0), normal(5, 2, seed=1), normal(6, 4, seed=2)
    plan = improve(smooth, lean, states, candidates, noise, first_of, DISCOUNT)
    for i, state in enumerate(states):
        for j, candidate in enumerate(candidates):
            drawn = smooth(noise, state, lean(state, candidate), candidate, DISCOUNT)
            alone = estimate_value(drawn, first_of, DISCOUNT)
            torch.testing.assert_close(plan.values[i, j], alone.value)
            torch.testing.assert_close(plan.standard_error[i, j], alone.standard_error)
        torch.testing.assert_close(plan.action[i], lean(state, candidates[plan.index[i]]))


def test_candidates_may_differ_from_state_to_state() -> None:
    noise, states, candidates = normal(7, 3, seed=0), normal(5, 2, seed=1), normal(5, 6, 4, seed=2)
    together = improve(smooth, lean, states, candidates, noise, first_of, DISCOUNT)
    for i in range(5):
        alone = improve(smooth, lean, states[i : i + 1], candidates[i], noise, first_of, DISCOUNT)
        torch.testing.assert_close(together.values[i], alone.values[0])
        assert together.index[i] == alone.index[0]
    same = improve(smooth, lean, states, candidates[:1].expand(5, -1, -1), noise, first_of, DISCOUNT)
    shared = improve(smooth, lean, states, candidates[0], noise, first_of, DISCOUNT)
    assert torch.equal(same.values, shared.values)


@pytest.mark.parametrize("max_rows", [7, 13, 14, 100, 210, None])
def test_the_model_is_asked_once_or_for_no_more_rows_than_allowed(max_rows: int | None) -> None:
    noise, states, candidates = normal(7, 3, seed=0), normal(5, 2, seed=1), normal(6, 4, seed=2)
    rows = []

    def counted(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor) -> Tensor:
        rows.append(noise.shape[:-1].numel())
        return smooth(noise, state, action, embedding, discount)

    plan = improve(counted, lean, states, candidates, noise, first_of, DISCOUNT, max_rows)
    assert sum(rows) == 5 * 6 * 7
    assert len(rows) == (1 if max_rows is None else math.ceil(30 / (max_rows // 7)))
    assert max_rows is None or max(rows) <= max_rows
    whole = improve(smooth, lean, states, candidates, noise, first_of, DISCOUNT)
    torch.testing.assert_close(plan.values, whole.values)
    torch.testing.assert_close(plan.action, whole.action)


@pytest.mark.parametrize(("B", "W", "Z", "K"), [(1, 1, 0, 1), (1, 5, 3, 2), (3, 1, 3, 3), (4, 4, 4, 4), (2, 3, 0, 1)])
def test_awkward_sizes_keep_their_shapes(B: int, W: int, Z: int, K: int) -> None:
    args = (normal(B, 2, seed=0), normal(W, Z, seed=1), normal(K, 3, seed=2), first_of, DISCOUNT)
    plan = improve(smooth, lean, *args)
    assert plan.index.shape == (B,)
    assert plan.action.shape == (B, 2)
    assert plan.values.shape == plan.standard_error.shape == (B, W)
    assert bool(plan.standard_error.isnan().all()) == (K == 1)
    choice = best_single(smooth, lean, *args)
    assert choice.index.shape == ()
    assert choice.values.shape == choice.standard_error.shape == (W,)


def test_the_best_single_member_is_the_one_of_the_highest_mean_value() -> None:
    rewards = normal(CHAIN.num_states, seed=3)
    starts = CHAIN.starts[[0, 0, 4]]
    choice = best_single(CHAIN.futures, CHAIN.act, starts, CHAIN.embeddings, ONE, paid(rewards), DISCOUNT)
    exact = own_values(CHAIN, rewards)[[0, 0, 4]].mean(0)
    torch.testing.assert_close(choice.values, exact)
    assert choice.index == exact.argmax()


def test_the_standard_error_of_the_best_single_member_knows_that_the_states_share_their_noise() -> None:
    states = normal(6, 2, seed=1)
    choices = [
        best_single(smooth, lean, states, torch.ones(2, 1, dtype=F64), noise, first_of, DISCOUNT)
        for noise in normal(3000, 10, 3, seed=0)
    ]
    values = torch.stack([choice.values for choice in choices])
    squares = torch.stack([choice.standard_error for choice in choices]).square().mean(0)
    torch.testing.assert_close(squares, values.var(0), rtol=0.06, atol=0.0)


@pytest.mark.parametrize("planner", [improve, best_single])
def test_what_does_not_fit_is_refused(planner: Callable) -> None:
    def call(
        states: Tensor = torch.zeros(2, 2),
        candidates: Tensor = torch.zeros(3, 1),
        noise: Tensor = torch.zeros(4, 3),
        model: Callable = smooth,
        reward: Callable = first_of,
        discount: float = DISCOUNT,
        max_rows: int | None = None,
    ) -> None:
        planner(model, lean, states, candidates, noise, reward, discount, max_rows)

    call()
    with pytest.raises(ValueError, match=r"states of shape \(B, S\), B at least 1, got \(2,\)"):
        call(states=torch.zeros(2))
    with pytest.raises(ValueError, match="B at least 1"):
        call(states=torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"candidates of shape \(W, Z\)"):
        call(candidates=torch.zeros(3))
    with pytest.raises(ValueError, match="W at least 1"):
        call(candidates=torch.zeros(0, 1))
    with pytest.raises(ValueError, match=r"noise of shape \(K, D\), got \(3,\)"):
        call(noise=torch.zeros(3))
    with pytest.raises(ValueError, match="noise of at least 1 draw"):
        call(noise=torch.zeros(0, 3))
    with pytest.raises(ValueError, match="max_rows must be at least the 4 draws of one candidate, got 3"):
        call(max_rows=3)
    with pytest.raises(ValueError, match=r"futures of the model of shape \(6, 4, 3\), got \(6, 4\)"):
        call(model=lambda *args: smooth(*args)[..., 0])
    with pytest.raises(ValueError, match="reward of the states"):
        call(reward=lambda x: x)
    with pytest.raises(ValueError, match="discount must lie in"):
        call(discount=1.0, model=lambda *args: pytest.fail("a model was asked at the discount 1"))
    with pytest.raises(ValueError, match="expected finite values of the candidates, but"):
        call(reward=lambda x: torch.full(x.shape[:-1], math.nan))


def test_other_candidates_at_each_state_must_be_as_many_as_the_states_and_have_no_single_best() -> None:
    args = (torch.zeros(4, 3), first_of, DISCOUNT)
    with pytest.raises(ValueError, match=r"or \(2, W, Z\), W at least 1, got \(3, 3, 1\)"):
        improve(smooth, lean, torch.zeros(2, 2), torch.zeros(3, 3, 1), *args)
    with pytest.raises(ValueError, match=r"the same at every state, got \(2, 3, 1\)"):
        best_single(smooth, lean, torch.zeros(2, 2), torch.zeros(2, 3, 1), *args)
