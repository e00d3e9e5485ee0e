"""Expansion of transitions into segments, on chains whose states count their steps."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.objectives import backup_weights, expand, geometric_lengths

F64 = torch.float64


def transitions(starts: list[float], terminated: list[bool] | None = None, embedding: Tensor | None = None) -> Segment:
    """Steps of a chain in which the action is added to the state; the first one is 1."""
    state = torch.tensor(starts, dtype=F64)[:, None]
    count = len(starts)
    return Segment(
        observation=state,
        action=torch.ones(count, 1, dtype=F64),
        arrivals=(state + 1.0)[:, None],
        terminated=torch.tensor(terminated or [False] * count)[:, None],
        length=torch.ones(count, dtype=torch.long),
        next_action=torch.zeros(count, 1, dtype=F64),
        embedding=torch.empty(count, 0, dtype=F64) if embedding is None else embedding,
        future=None,
    )


def add(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A sure model without terminal states."""
    nothing = torch.zeros(len(state), dtype=state.dtype)
    return state + action, nothing, nothing


def doubled(state: Tensor, embedding: Tensor) -> Tensor:
    return torch.full_like(state, 2.0)


def expanded(segment: Segment, lengths: list[int], most: int, step: Any = add, act: Any = doubled, gate=0.5) -> Segment:
    uniform = torch.full((len(lengths), most - 1), 0.5, dtype=F64)
    return expand(segment, act, step, torch.tensor(lengths), gate, uniform)


def test_the_first_step_is_the_observed_one_and_the_policy_takes_the_others() -> None:
    result = expanded(transitions([0.0, 10.0, 20.0]), [4, 2, 1], most=4)
    assert result.length.tolist() == [4, 2, 1]
    assert result.arrivals[0, :, 0].tolist() == [1.0, 3.0, 5.0, 7.0]
    assert result.arrivals[1, :2, 0].tolist() == [11.0, 13.0]
    assert result.arrivals[2, 0, 0] == 21.0
    assert not result.terminated.any()
    assert result.next_action is None


def test_each_segment_follows_the_member_of_its_embedding() -> None:
    embedding = torch.tensor([[1.0], [3.0]], dtype=F64)
    result = expanded(transitions([0.0, 0.0], embedding=embedding), [3, 3], most=3, act=lambda state, member: member)
    assert result.arrivals[..., 0].tolist() == [[1.0, 2.0, 3.0], [1.0, 4.0, 7.0]]


def test_an_expansion_ends_before_a_step_that_the_model_is_unsure_of() -> None:
    def unsure(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        arrival, _, terminal = add(state, action)
        return arrival, state[:, 0] / 10.0, terminal  # .5 at the state 5

    result = expanded(transitions([0.0, 5.0]), [5, 5], most=5, step=unsure)
    assert result.length.tolist() == [4, 1]  # from 1 to 3 and 5, where it is still sure enough, to 7
    assert result.arrivals[0, :4, 0].tolist() == [1.0, 3.0, 5.0, 7.0]


def test_terminal_states_are_never_left() -> None:
    def ends(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        arrival, sure, _ = add(state, action)
        return arrival, sure, (arrival[:, 0] >= 5.0).double()

    result = expanded(transitions([0.0, 0.0, 9.0], [False, True, False]), [5, 5, 5], most=5, step=ends)
    assert result.length.tolist() == [3, 1, 2]
    assert result.terminated.tolist() == [
        [False, False, True, False, False],
        [True] + 4 * [False],
        [False, True, *3 * [False]],
    ]


@pytest.mark.parametrize("first_state", ["arrival", "current"])
def test_a_backup_of_an_expansion_has_the_value_of_the_policy(first_state: Any) -> None:
    # Rewards are states. After n steps of the chain the rest is known: sum_k (1 - g) g^k (s + 2 (k + 1)).
    discount, start = 0.9, 3.0
    result = expanded(transitions([start] * 4), [1, 2, 5, 9], most=9)
    weights, rest = backup_weights(torch.full((4,), discount, dtype=F64), result.terminated, result.length, first_state)
    states = torch.cat([result.observation[:, None], result.arrivals], dim=1)[..., 0]
    last = states[torch.arange(4), result.length]
    lag = 1.0 if first_state == "arrival" else 0.0
    mean = last + 2.0 * (discount / (1.0 - discount) + lag)
    value = (weights * states).sum(1) + rest * mean
    torch.testing.assert_close(value, value[:1].expand(4), rtol=1e-12, atol=0.0)


def test_the_segments_of_one_step_are_those_that_were_given() -> None:
    given = transitions([0.0, 5.0])
    result = expanded(given, [1, 1], most=1)
    for field in fields(Segment):
        if field.name != "next_action":
            one, other = getattr(given, field.name), getattr(result, field.name)
            assert one is other is None or torch.equal(one, other), field.name


def test_lengths_are_geometric_and_cut_off() -> None:
    uniform = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    lengths = geometric_lengths(4.0, 1000, uniform)
    assert int(lengths.min()) == 1
    assert float(lengths.double().mean()) == pytest.approx(4.0, abs=1e-2)
    assert float((lengths == 1).double().mean()) == pytest.approx(0.25, abs=1e-4)
    assert torch.equal(geometric_lengths(4.0, 6, uniform), lengths.clamp_max(6))
    assert torch.equal(geometric_lengths(1.0, 6, uniform[:3]), torch.ones(3, dtype=torch.long))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="arrivals"):
        expand(expanded(transitions([0.0]), [2], most=2), doubled, add, torch.tensor([2]), 0.5, torch.rand(1, 1))
    with pytest.raises(ValueError, match="uniform"):
        expand(transitions([0.0]), doubled, add, torch.tensor([2]), 0.5, torch.rand(2, 1))
