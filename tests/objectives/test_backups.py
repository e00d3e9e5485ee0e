"""Weights of Bellman backups of an occupancy."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.objectives import (
    FirstState,
    backup_weights,
    choose_state,
    discounts_between,
    horizon_weights,
    include_current_state,
    resumes_far,
    time_constants,
)
from tests.combinations import each_pair
from tests.oracles import F64, uniform


def chain(num_states: int, seed: int) -> Tensor:
    """A random transition matrix of a policy, shape (states, states)."""
    rows = uniform(num_states, num_states, seed=seed) ** 3
    return rows / rows.sum(1, keepdim=True)


def occupancy(kernel: Tensor, discount: float, first_state: FirstState = "arrival") -> Tensor:
    eye = torch.eye(len(kernel), dtype=F64)
    current = (1.0 - discount) * torch.linalg.inv(eye - discount * kernel)
    return current if first_state == "current" else kernel @ current


def weights_of(discount: float, terminated: list[bool], length: int, first_state: FirstState) -> tuple[Tensor, Tensor]:
    weights, rest = backup_weights(
        torch.tensor([discount], dtype=F64), torch.tensor([terminated]), torch.tensor([length]), first_state
    )
    return weights[0], rest[0]


@each_pair
@pytest.mark.parametrize("first_state", ["arrival", "current"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("discount", [0.0, 0.3, 0.95])
def test_the_occupancy_is_the_fixed_point_of_its_backup(
    first_state: FirstState, num_steps: int, discount: float
) -> None:
    kernel = chain(5, seed=1)
    weights, rest = weights_of(discount, [False] * num_steps, num_steps, first_state)
    powers = [torch.linalg.matrix_power(kernel, k) for k in range(num_steps + 1)]
    exact = occupancy(kernel, discount, first_state)
    backed_up = sum(w * p for w, p in zip(weights, powers, strict=True)) + rest * powers[-1] @ exact
    torch.testing.assert_close(backed_up, exact, rtol=0, atol=1e-12)
    assert rest == pytest.approx(discount**num_steps)


@pytest.mark.parametrize("first_state", ["arrival", "current"])
def test_a_transition_that_may_end_gives_the_occupancy_with_an_absorbing_state(first_state: FirstState) -> None:
    # From state 0 the process ends in state 1 with probability 0.3, and stays with 0.7; discount 0.9.
    kernel = torch.tensor([[0.7, 0.3], [0.0, 1.0]], dtype=F64)
    exact = occupancy(kernel, 0.9, first_state)[0]
    if first_state == "arrival":
        torch.testing.assert_close(exact, torch.tensor([0.07, 0.3], dtype=F64) / 0.37)
        assert exact.tolist() == pytest.approx([0.189, 0.811], abs=1e-3)
    stays, rest = weights_of(0.9, [False], 1, first_state)
    ends, nothing = weights_of(0.9, [True], 1, first_state)
    assert nothing == 0.0
    current, other = torch.eye(2, dtype=F64)
    backed_up = 0.7 * (stays[0] * current + stays[1] * current + rest * exact) + 0.3 * (
        ends[0] * current + ends[1] * other
    )
    torch.testing.assert_close(backed_up, exact)


def test_masking_the_bootstrap_alone_would_give_another_law() -> None:
    # The rule that is easily taken instead leaves the direct weight of an ending transition at 1 - discount: on the
    # process above its fixed point is proportional to one step, (0.70, 0.30).
    (_, stays), rest = weights_of(0.9, [False], 1, "arrival")
    (_, ends), _ = weights_of(0.9, [True], 1, "arrival")
    fixed_points = []
    for weight in (0.1, float(ends)):
        mass = torch.tensor([0.7 * float(stays), 0.3 * weight], dtype=F64) / (1.0 - 0.7 * float(rest))
        fixed_points.append((mass / mass.sum()).tolist())
    assert fixed_points[0] == pytest.approx([0.70, 0.30])
    assert fixed_points[1] == pytest.approx([0.189, 0.811], abs=1e-3)


@each_pair
@pytest.mark.parametrize("first_state", ["arrival", "current"])
@pytest.mark.parametrize("ends_at", [None, 1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_weights_sum_to_one_and_nothing_follows_an_end(
    first_state: FirstState, ends_at: int | None, length: int
) -> None:
    terminated = [k == ends_at for k in range(1, 5)]
    weights, rest = weights_of(0.8, terminated, length, first_state)
    assert float(weights.sum() + rest) == pytest.approx(1.0)
    last = length if ends_at is None else min(ends_at, length)
    assert weights[last + 1 :].eq(0).all()
    assert (rest == 0.0) == (ends_at is not None and ends_at <= length)


def test_padding_beyond_a_segment_has_no_weight_even_if_it_looks_terminal() -> None:
    weights, rest = weights_of(0.5, [False, True, True], 1, "arrival")
    assert weights.tolist() == [0.0, 0.5, 0.0, 0.0]
    assert rest == 0.5


def test_a_chosen_state_follows_the_weights() -> None:
    weights = torch.tensor([[0.0, 0.1, 0.0, 0.3]], dtype=F64).expand(40_000, -1)
    states = torch.arange(4.0)[:, None].expand(40_000, 4, 1)
    state, total = choose_state(states, weights, (torch.arange(40_000, dtype=F64) + 0.5) / 40_000)
    assert state.unique().tolist() == [1.0, 3.0]
    assert float((state == 3.0).double().mean()) == pytest.approx(0.75, abs=1e-4)
    torch.testing.assert_close(total, torch.full((40_000,), 0.4, dtype=F64))


@pytest.mark.parametrize("level", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_uniform_law_choose_states_that_count(level: float) -> None:
    state, _ = choose_state(
        torch.arange(4.0)[None, :, None],
        torch.tensor([[0.0, 0.1, 0.2, 0.0]], dtype=F64),
        torch.tensor([level], dtype=F64),
    )
    assert state.item() == (1.0 if level == 0.0 else 2.0)


@pytest.mark.parametrize(("discount", "shorter"), [(0.9, 0.9), (0.9, 0.5), (0.99, 0.0)])
def test_the_horizon_backup_has_the_occupancy_as_its_fixed_point(discount: float, shorter: float) -> None:
    kernel = chain(6, seed=2)
    weights = horizon_weights(torch.tensor([discount], dtype=F64), torch.tensor([shorter], dtype=F64))
    direct, near, far = (float(w) for w in weights)
    assert direct + near + far == pytest.approx(1.0)
    long, short = occupancy(kernel, discount), occupancy(kernel, shorter)
    # S' and then the states of the shorter occupancy, from each of which the policy resumes.
    backed_up = direct * kernel + near * kernel @ short + far * kernel @ short @ long
    torch.testing.assert_close(backed_up, long, rtol=0, atol=1e-12)


def test_bad_shapes_are_refused() -> None:
    two, flags = torch.tensor([0.9, 0.9]), torch.zeros(2, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"terminated of shape \(B, n\)"):
        backup_weights(two, flags[:, 0], torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match="discount"):
        backup_weights(two[:1], flags, torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match="length"):
        backup_weights(two, flags, torch.ones(3, dtype=torch.long))
    with pytest.raises(ValueError, match="weights"):
        choose_state(torch.zeros(2, 3, 1), torch.ones(2, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="equal shapes"):
        horizon_weights(two, two[:1])


def test_one_of_two_horizons_is_chosen_with_the_probability_of_its_weight() -> None:
    discount, shorter = torch.full((1000,), 0.9, dtype=F64), torch.full((1000,), 0.6, dtype=F64)
    even = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    far = resumes_far(discount, shorter, even)
    _, near_weight, far_weight = horizon_weights(discount[:1], shorter[:1])
    assert float(far.double().mean()) == pytest.approx(float(far_weight / (near_weight + far_weight)))


def test_the_current_state_is_included_with_the_probability_of_its_weight() -> None:
    even = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    states = include_current_state(torch.zeros(1000, 1), torch.ones(1000, 1), torch.full((1000,), 0.7, dtype=F64), even)
    assert float((states == 0.0).double().mean()) == pytest.approx(0.3)


def test_discounts_are_even_in_the_logarithm_of_the_horizon() -> None:
    found = discounts_between(0.5, torch.full((3,), 0.9, dtype=F64), torch.tensor([0.0, 0.5, 1.0], dtype=F64))
    torch.testing.assert_close(1.0 / (1.0 - found), torch.tensor([2.0, 20.0**0.5, 10.0], dtype=F64))


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_error_of_a_table_falls_as_the_time_constants_say(num_steps: int) -> None:
    # A backup of n steps on one state that is never left lets discount^n of the error of its target through.
    decay, discount, updates, error, error_ema = 0.98, 0.9, 500, 1.0, 1.0
    for _ in range(updates):
        error = discount**num_steps * error_ema
        error_ema = decay * error_ema + (1.0 - decay) * error
    assert error_ema == pytest.approx(math.exp(-time_constants(decay, discount, updates, num_steps)), rel=0.1)
