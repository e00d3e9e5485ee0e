"""The return expected of a policy, by critics and in a one-step model."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.evaluation.expected_return import modelled_return, stated_return
from flowmatch_rl.models.dynamics import Step


class Walk:
    """Moves by the action; terminal with a constant probability."""

    def __init__(self, terminal: float = 0.0) -> None:
        self.terminal = terminal

    def step(self, observation: Tensor, action: Tensor, generator: Any = None) -> Step:
        number = len(observation)
        return Step(observation + action, torch.full((number,), 0.3), torch.full((number,), self.terminal))


def forward(states: Tensor) -> Tensor:
    return torch.ones_like(states)


def found(reward_of: Any, discount: float = 0.9, terminal: float = 0.0) -> Any:
    model: Any = Walk(terminal)
    states = torch.tensor([[0.0], [10.0]], dtype=torch.float64)
    return modelled_return(model, forward, states, reward_of, discount)


def test_a_constant_reward_is_worth_one_over_one_minus_the_discount() -> None:
    measured = found(lambda states: torch.full_like(states[:, 0], 2.0))
    torch.testing.assert_close(measured.returns, torch.full((2,), 20.0, dtype=torch.float64))
    assert measured.steps == 44
    assert measured.spread == pytest.approx(0.3)


def test_rewards_are_those_of_the_states_arrived_in() -> None:
    measured = found(lambda states: (states[:, 0] < 3.5).double())
    # States 1, 2 and 3 pay from the first start, none from the second.
    torch.testing.assert_close(measured.returns, torch.tensor([1.0 + 0.9 + 0.81, 0.0], dtype=torch.float64))
    assert float(measured.mean) == pytest.approx(1.355)
    assert float(measured.error) == pytest.approx(1.355)


def test_nothing_is_paid_after_a_terminal_state() -> None:
    measured = found(lambda states: torch.ones_like(states[:, 0]), terminal=0.5)
    torch.testing.assert_close(measured.returns, torch.full((2,), 1.0 / (1.0 - 0.45), dtype=torch.float64))


def test_a_discount_of_zero_is_one_step() -> None:
    measured = found(lambda states: states[:, 0], discount=0.0)
    assert measured.steps == 1
    torch.testing.assert_close(measured.returns, torch.tensor([1.0, 11.0], dtype=torch.float64))


def test_the_return_that_critics_state_has_the_error_of_states_and_of_critics() -> None:
    states = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    mean, error = stated_return(states[None])
    assert float(mean) == 3.0
    assert float(error) == pytest.approx((14.0 / 3.0 / 4.0) ** 0.5)
    mean, error = stated_return(torch.stack([states - 2.0, states + 4.0]))
    assert float(mean) == 4.0
    # Critics 6 apart have a standard deviation of 3, of which the mean of two has a variance of 9 / 2.
    assert float(error) == pytest.approx((14.0 / 3.0 / 4.0 + 4.5) ** 0.5)
