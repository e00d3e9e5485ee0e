import math

import pytest
import torch

from flowmatch_rl.objectives import bellman_target, critic_loss
from tests.oracles import F64, normal


def test_the_target_is_the_reward_and_the_discounted_value_of_the_arrival_state() -> None:
    target = bellman_target(
        torch.tensor([1.0, -2.0, 0.5]), torch.tensor([False, True, False]), torch.tensor([10.0, 10.0, -4.0]), 0.9
    )
    torch.testing.assert_close(target, torch.tensor([10.0, -2.0, -3.1]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_value_of_a_terminal_state_never_counts(value: float) -> None:
    target = bellman_target(torch.tensor([0.25]), torch.tensor([True]), torch.tensor([value]), 0.99)
    assert torch.equal(target, torch.tensor([0.25]))


def test_targets_repeated_on_a_finite_chain_reach_the_values_of_the_linear_system() -> None:
    """States 0, 1, 2 in a ring with reward 1, 2, 3; from state 2 the episode terminates."""
    reward, discount = torch.tensor([1.0, 2.0, 3.0], dtype=F64), 0.8
    value, arrival, terminated = torch.zeros(3, dtype=F64), torch.tensor([1, 2, 0]), torch.tensor([False, False, True])
    for _ in range(5):
        value = bellman_target(reward, terminated, value[arrival], discount)
    torch.testing.assert_close(value, torch.tensor([1 + 0.8 * (2 + 0.8 * 3), 2 + 0.8 * 3, 3.0], dtype=F64))
    for _ in range(200):
        value = bellman_target(reward, torch.zeros(3, dtype=torch.bool), value[arrival], discount)
    ring = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=F64)
    torch.testing.assert_close(value, torch.linalg.solve(torch.eye(3, dtype=F64) - discount * ring, reward))


@pytest.mark.parametrize(
    "shapes", [((4, 1), (4,), (4,)), ((4,), (4, 1), (4,)), ((4,), (4,), (4, 1)), ((4,), (4,), (1,)), ((), (4,), (4,))]
)
def test_rewards_flags_and_values_must_share_one_shape(shapes: tuple[tuple[int, ...], ...]) -> None:
    reward, terminated, value = shapes
    with pytest.raises(ValueError, match="equal shapes"):
        bellman_target(torch.zeros(reward), torch.zeros(terminated, dtype=torch.bool), torch.zeros(value), 0.9)


@pytest.mark.parametrize(("members", "batch"), [(1, 1), (2, 5), (3, 3), (5, 1)])
def test_the_critic_loss_is_the_mean_over_members_per_sample(members: int, batch: int) -> None:
    values, target = normal(members, batch, seed=1), normal(batch, seed=2)
    loss = critic_loss(values, target)
    assert loss.shape == (batch,)
    for b in range(batch):
        expected = sum((values[m, b] - target[b]) ** 2 for m in range(members)) / members
        torch.testing.assert_close(loss[b], expected)


def test_every_member_is_pulled_toward_the_target_by_its_own_error() -> None:
    values, target = normal(2, 5, seed=1).requires_grad_(), normal(5, seed=2)
    critic_loss(values, target).sum().backward()
    torch.testing.assert_close(values.grad, (values - target).detach())


@pytest.mark.parametrize(
    ("values", "target"), [((2, 5), (5, 1)), ((2, 5), (2, 5)), ((2, 5), (1,)), ((5,), (5,)), ((5, 2), (5,))]
)
def test_values_that_do_not_fit_the_target_are_refused(values: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        critic_loss(torch.zeros(values), torch.zeros(target))
