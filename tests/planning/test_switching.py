import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flowmatch_rl.planning import (
    improve,
    improve_by_switching,
    switching_discounts,
    switching_value,
    switching_weights,
    terminal_fraction,
)
from tests.combinations import each_value, one_test
from tests.oracles import F64, normal
from tests.planning.chains import Chain, line_chain, midpoints, random_chain

DISCOUNT = 0.9
CHAIN = random_chain()
SWITCHES = [(0.0,), (1.0, 0.0), (0.3, 0.0), (0.0, 0.0), (0.25, 0.6, 0.0), (1.0, 1.0, 1.0, 0.0)]
"""Probabilities of leaving each member after a step."""


def switching_occupancy(
    chain: Chain, members: Sequence[int], switches: Sequence[float], discount: float = DISCOUNT
) -> Tensor:
    """Law of the futures of the switching policy by state and first action, shape (S, A, S).

    The process is written out with the place in the sequence as part of its state.
    """
    states, stages = chain.num_states, len(members)
    stay = torch.diag(1.0 - torch.tensor(switches, dtype=F64))
    move = stay + torch.diag(torch.tensor(switches[:-1], dtype=F64), 1)  # from a stage to the next
    step = torch.zeros(stages, states, stages, states, dtype=F64)
    for stage, member in enumerate(members):
        step[stage] = torch.einsum("st,j->sjt", chain.followed(chain.members[member]), move[stage])
    first = torch.einsum("sat,j->sajt", chain.transition, move[0]).flatten(-2)
    eye = torch.eye(stages * states, dtype=F64)
    laws = (1.0 - discount) * first @ torch.linalg.inv(eye - discount * step.flatten(2).flatten(0, 1))
    return laws.unflatten(-1, (stages, states)).sum(-2)


def noise_of(switches: Sequence[float], chain: Chain = CHAIN) -> Tensor:
    """Noise of a single draw per link, which a model that returns whole laws does not look at."""
    return torch.zeros(len(switches), 1, chain.num_states, dtype=F64)


@each_value
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_weights_are_shares_that_sum_to_one(discount: float, switches: tuple[float, ...]) -> None:
    weights = switching_weights(discount, switching_discounts(discount, switches))
    assert len(weights) == len(switches)
    assert all(0.0 <= weight <= 1.0 for weight in weights)
    assert sum(weights) == pytest.approx(1.0, rel=1e-14)


def test_a_weight_is_the_discounted_time_spent_with_its_member() -> None:
    switches = (0.25, 0.6, 0.0)
    weights = switching_weights(DISCOUNT, switching_discounts(DISCOUNT, switches))
    move = torch.diag(1.0 - torch.tensor(switches, dtype=F64)) + torch.diag(torch.tensor(switches[:-1], dtype=F64), 1)
    # The step made under a member is counted for it, whether or not it is left after the step.
    time = (1.0 - DISCOUNT) * torch.linalg.inv(torch.eye(3, dtype=F64) - DISCOUNT * move)[0]
    assert list(weights) == pytest.approx(time.tolist(), rel=1e-12)


@each_value
@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.99])
def test_the_value_is_that_of_the_switching_process(switches: tuple[float, ...], discount: float) -> None:
    members = (2, 0, 3, 1)[: len(switches)]
    betas = switching_discounts(discount, switches)
    sequence = CHAIN.embeddings[list(members)].expand(CHAIN.num_states, -1, -1)
    rewards = normal(CHAIN.num_states, seed=1)
    laws = switching_occupancy(CHAIN, members, switches, discount)
    torch.testing.assert_close(laws.sum(-1), torch.ones(laws.shape[:2], dtype=F64))
    for first in range(CHAIN.transition.shape[1]):
        action = torch.full((CHAIN.num_states, CHAIN.num_states), float(first), dtype=F64)
        value = switching_value(
            CHAIN.futures,
            CHAIN.act,
            CHAIN.starts,
            action,
            sequence,
            noise_of(switches),
            lambda x: x @ rewards,
            discount,
            betas,
        ).value
        torch.testing.assert_close(value, laws[:, first] @ rewards / (1.0 - discount), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
def test_switching_from_a_member_to_itself_changes_nothing(beta: float) -> None:
    rewards = normal(CHAIN.num_states, seed=1)
    table = CHAIN.members[2]
    value = switching_value(
        CHAIN.futures,
        CHAIN.act,
        CHAIN.starts,
        table.double().expand(CHAIN.num_states, -1),
        CHAIN.embeddings[[2, 2]].expand(CHAIN.num_states, -1, -1),
        noise_of((0.0, 0.0)),
        lambda x: x @ rewards,
        DISCOUNT,
        (beta, DISCOUNT),
    ).value
    torch.testing.assert_close(value, CHAIN.value(table, rewards, DISCOUNT))


@pytest.mark.parametrize("beta", [0.0, 0.4, 0.9])
def test_a_longer_horizon_is_a_mixture_of_shorter_ones_chained(beta: float) -> None:
    table = CHAIN.members[1]
    own = CHAIN.followed(table)
    here = torch.arange(CHAIN.num_states)
    long, short = (CHAIN.occupancy(table, discount)[here, table] for discount in (DISCOUNT, beta))
    share = (1.0 - DISCOUNT) / (1.0 - beta)
    direct = share * short + (DISCOUNT - beta) / (1.0 - beta) * short @ long
    torch.testing.assert_close(direct, long, rtol=1e-12, atol=1e-14)
    step = (1.0 - DISCOUNT) * own + DISCOUNT * own @ direct
    torch.testing.assert_close(step, long, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("betas", [(0.6, 0.9), (0.6, 0.8, 0.9), (0.0, 0.0, 0.9)], ids=str)
def test_a_chain_that_reached_a_terminal_state_stays_there(betas: tuple[float, ...]) -> None:
    """A counter that stops with probability p per step has the mean look-ahead 1 / (1 - discount (1 - p)), here 5.814.

    Whether it has stopped is not seen: with probability p where an arrival is looked at, more often in a draw.
    """
    ends, side = 0.08, {2: 600, 3: 70}[len(betas)]
    noise = torch.cartesian_prod(*[midpoints(side)] * len(betas)).T[..., None]

    def futures(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor) -> Tensor:
        going = discount * (1.0 - ends)
        steps = torch.ones_like(noise) if going == 0.0 else 1.0 + (torch.log1p(-noise) / math.log(going)).floor()
        return state[..., None, :] + steps

    value = switching_value(
        futures,
        lambda state, member: state,
        torch.zeros(1, dtype=F64),
        torch.zeros(1, dtype=F64),
        torch.zeros(len(betas), 0, dtype=F64),
        noise,
        lambda state: state[..., 0],
        DISCOUNT,
        betas,
        lambda state, beta: terminal_fraction(torch.full_like(state[..., 0], ends), beta),
    ).value
    exact = 1.0 / (1.0 - DISCOUNT * (1.0 - ends))
    assert exact == pytest.approx(5.814, abs=1e-3)
    assert float(value) * (1.0 - DISCOUNT) == pytest.approx(exact, rel=0.01)


def test_chains_of_draws_have_the_value_of_the_switching_process() -> None:
    chain, switches, side = line_chain(), (0.3, 0.0), 150
    betas = switching_discounts(DISCOUNT, switches)
    rewards = torch.linspace(-1.0, 2.0, chain.num_states, dtype=F64)
    # Every combination of the quantiles of both links.
    noise = torch.cartesian_prod(midpoints(side), midpoints(side)).T[..., None]
    states = torch.arange(chain.num_states, dtype=F64)[:, None]
    sequence = chain.embeddings[[1, 2]].expand(chain.num_states, -1, -1)
    action = chain.act_at(states, sequence[:, 0])
    estimate = switching_value(
        chain.sampled,
        chain.act_at,
        states,
        action,
        sequence,
        noise,
        lambda x: rewards[x[..., 0].long()],
        DISCOUNT,
        betas,
    )
    laws = switching_occupancy(chain, (1, 2), switches)[torch.arange(chain.num_states), action[:, 0].long()]
    torch.testing.assert_close(estimate.value, laws @ rewards / (1.0 - DISCOUNT), rtol=0.0, atol=0.1)
    assert estimate.value.max() - estimate.value.min() > 1.0


def test_the_standard_error_is_that_of_chains_whose_links_hang_together() -> None:
    rewards, switches = normal(CHAIN.num_states, seed=1), (0.3, 0.0)
    state = torch.full((4000, 1), 2.0, dtype=F64)
    sequence = CHAIN.embeddings[[1, 3]].expand(4000, -1, -1)
    uniforms = torch.special.ndtr(normal(2, 4000, 25, 1, seed=0))

    def sampled(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor) -> Tensor:
        """The model with noise of its own for each of the batch: repeats of one estimate in one call."""
        own = uniforms[0] if noise.shape[-2] == 25 else uniforms[1][..., None, :]
        return CHAIN.sampled(own, state, action, embedding, discount)

    estimate = switching_value(
        sampled,
        CHAIN.act_at,
        state,
        CHAIN.act_at(state, sequence[:, 0]),
        sequence,
        torch.zeros(2, 25, 1, dtype=F64),
        lambda x: rewards[x[..., 0].long()],
        DISCOUNT,
        switching_discounts(DISCOUNT, switches),
    )
    law = switching_occupancy(CHAIN, (1, 3), switches)[2, CHAIN.members[1, 2]]
    error = estimate.value - law @ rewards / (1.0 - DISCOUNT)
    assert error.mean().abs() < 4.0 * error.std() / 4000**0.5
    assert estimate.standard_error.square().mean().item() == pytest.approx(error.square().mean().item(), rel=0.08)


def test_one_member_to_a_sequence_is_generalised_policy_improvement() -> None:
    rewards = normal(CHAIN.num_states, seed=1)
    plain = improve(
        CHAIN.futures, CHAIN.act, CHAIN.starts, CHAIN.embeddings, noise_of((0.0,))[0], lambda x: x @ rewards, DISCOUNT
    )
    for length, betas in ((1, (DISCOUNT,)), (2, (0.0, DISCOUNT)), (3, (0.3, 0.6, DISCOUNT))):
        chained = improve_by_switching(
            CHAIN.futures,
            CHAIN.act,
            CHAIN.starts,
            CHAIN.embeddings[:, None].expand(-1, length, -1),
            noise_of(betas),
            lambda x: x @ rewards,
            DISCOUNT,
            betas,
        )
        torch.testing.assert_close(chained.values, plain.values)
        assert torch.equal(chained.index, plain.index)
        assert torch.equal(chained.action, plain.action)


def test_switching_after_one_step_values_the_actions_of_all_members_by_all_members() -> None:
    rewards, count = normal(CHAIN.num_states, seed=1), len(CHAIN.members)
    pairs = torch.cartesian_prod(CHAIN.embeddings[:, 0], CHAIN.embeddings[:, 0])[..., None]  # (W * W, 2, 1)
    plan = improve_by_switching(
        CHAIN.futures, CHAIN.act, CHAIN.starts, pairs, noise_of((1.0, 0.0)), lambda x: x @ rewards, DISCOUNT, (0.0, 0.9)
    )
    here = torch.arange(CHAIN.num_states)
    for i in range(count):
        for j in range(count):
            exact = CHAIN.action_value(CHAIN.members[j], rewards, DISCOUNT)[here, CHAIN.members[i]]
            torch.testing.assert_close(plan.values[:, i * count + j], exact)
    singles = plan.values[:, :: count + 1]
    assert (plan.values.amax(1) >= singles.amax(1)).all()
    assert (plan.values.amax(1) > singles.amax(1) + 1e-3).any()


@pytest.mark.parametrize("max_rows", [3, 7, 40, None])
def test_sequences_are_planned_in_bounded_calls_with_the_same_result(max_rows: int | None) -> None:
    noise, states = normal(2, 3, 4, seed=0), normal(5, 4, seed=1)
    sequences = normal(5, 6, 2, 3, seed=2)
    rows = []

    def model(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor) -> Tensor:
        rows.append(noise.shape[:-1].numel())
        shift = state.sum(-1) + 2.0 * action.sum(-1) - embedding.square().sum(-1)
        return discount * noise + shift[..., None, None].tanh()

    def act(state: Tensor, embedding: Tensor) -> Tensor:
        return (state[..., :2] + embedding[..., :2]).tanh()

    def plan(limit: int | None, some: slice = slice(None)):
        return improve_by_switching(
            model, act, states[some], sequences[some], noise, lambda x: x.square().sum(-1), 0.8, (0.5, 0.8), limit
        )

    bounded = plan(max_rows)
    assert max(rows) <= (max_rows or 90)
    assert sum(rows) == 2 * 90
    torch.testing.assert_close(bounded.values, plan(None).values)
    for i in range(5):
        alone = plan(None, slice(i, i + 1))
        torch.testing.assert_close(bounded.values[i], alone.values[0])
        torch.testing.assert_close(bounded.action[i], act(states[i], sequences[i, bounded.index[i], 0]))


def test_awkward_sizes_keep_their_shapes() -> None:
    def model(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float | Tensor) -> Tensor:
        assert embedding.shape == (*state.shape[:-1], 0)
        return noise + state[..., None, :] + action[..., None, :]

    plan = improve_by_switching(
        model,
        lambda state, embedding: state,
        normal(1, 1, seed=0),
        torch.zeros(1, 3, 0),
        normal(3, 1, 1, seed=1),
        lambda x: x[..., 0],
        0.5,
        (0.5, 0.0, 0.5),
    )
    assert plan.index.tolist() == [0]
    assert plan.action.shape == plan.values.shape == plan.standard_error.shape == (1, 1)
    assert plan.standard_error.isnan().all()


@one_test
@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ((), r"last of betas must be the discount 0.9, got \(\)"),
        ((0.9, 0.5), "last of betas must be the discount 0.9"),
        ((0.95, 0.9), r"betas must lie in \[0, 0.9\], got \(0.95, 0.9\)"),
        ((-0.1, 0.9), r"betas must lie in \[0, 0.9\]"),
    ],
)
def test_discounts_that_make_no_chain_are_refused(betas: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        switching_weights(DISCOUNT, betas)


def test_probabilities_that_make_no_chain_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got \(1.5, 0.0\)"):
        switching_discounts(DISCOUNT, (1.5, 0.0))
    with pytest.raises(ValueError, match="the last of switch_probabilities must be 0, got"):
        switching_discounts(DISCOUNT, (0.5, 0.5))
    with pytest.raises(ValueError, match="the last of switch_probabilities must be 0, got"):
        switching_discounts(DISCOUNT, ())
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\), got 1.0"):
        switching_discounts(1.0, (0.0,))


@one_test
@pytest.mark.parametrize(
    ("noise", "sequence", "message"),
    [
        ((2, 3, 5), (4, 2, 1), r"noise of shape \(2, 3, 6\), got \(2, 3, 5\)"),
        ((1, 3, 6), (4, 2, 1), r"noise of shape \(2, K, S\), one row per model, got \(1, 3, 6\)"),
        ((2, 6), (4, 2, 1), r"noise of shape \(2, K, S\)"),
        ((2, 3, 6), (4, 3, 1), r"sequence of shape \(4, 2, 1\), got \(4, 3, 1\)"),
        ((2, 3, 6), (2, 1), r"sequence of shape \(4, 2, 1\), got \(2, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(noise: tuple[int, ...], sequence: tuple[int, ...], message: str) -> None:
    states = torch.zeros(4, CHAIN.num_states)
    with pytest.raises(ValueError, match=message):
        switching_value(
            CHAIN.futures,
            CHAIN.act,
            states,
            states,
            torch.zeros(sequence),
            torch.zeros(noise),
            lambda x: x[..., 0],
            DISCOUNT,
            (0.5, DISCOUNT),
        )
