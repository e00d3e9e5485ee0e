"""Policies that are formulas."""

import pytest
import torch

from flowmatch_rl.testbeds import (
    ConstantPolicy,
    LinearPolicy,
    MazeGoalPolicy,
    PointGoalPolicy,
    PolicyMixture,
    RandomPolicy,
)
from tests.combinations import one_test


def test_linear_policy_is_the_affine_map() -> None:
    policy = LinearPolicy([[0.5, -1.0, 2.0]], [0.25])
    action = policy.act(torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]]]))
    assert torch.equal(action, torch.tensor([[[-1.25]], [[2.25]]]))
    assert torch.equal(LinearPolicy([[0.5, -1.0, 2.0]]).act(torch.zeros(2, 3)), torch.zeros(2, 1))


def test_constant_policy_ignores_the_observation() -> None:
    action = ConstantPolicy([0.5, -1.0]).act(torch.randn(4, 2, 3, dtype=torch.float64))
    assert torch.equal(action, torch.tensor([0.5, -1.0], dtype=torch.float64).expand(4, 2, 2))


def test_random_policy_fills_the_box_and_repeats_under_a_seed() -> None:
    policy = RandomPolicy(2)
    first, again = (policy.act(torch.zeros(20_000, 5), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (20_000, 2)
    assert first.abs().max() <= 1.0
    torch.testing.assert_close(first.mean(0), torch.zeros(2), rtol=0.0, atol=0.02)
    torch.testing.assert_close(first.var(0), torch.full((2,), 1.0 / 3.0), rtol=0.0, atol=0.01)


def test_one_policy_of_a_mixture_acts_and_each_is_equally_likely() -> None:
    mixture = PolicyMixture([ConstantPolicy([0.5]), LinearPolicy([[1.0, 0.0]]), ConstantPolicy([-1.0])])
    numbers = mixture.embeddings(torch.rand(9_000, 1, generator=torch.Generator().manual_seed(0)))
    assert numbers.shape == (9_000, 1)
    shares = torch.bincount(numbers[:, 0].long(), minlength=3) / 9_000
    torch.testing.assert_close(shares, torch.full((3,), 1.0 / 3.0), rtol=0.0, atol=0.02)
    state = torch.tensor([[[0.25, 9.0]], [[0.75, 9.0]]]).expand(2, 3, 2)
    acting = torch.tensor([[[0.0], [1.0], [2.0]], [[2.0], [1.0], [0.0]]])
    wanted = torch.tensor([[[0.5], [0.25], [-1.0]], [[-1.0], [0.75], [0.5]]])
    assert torch.equal(mixture.act(state, acting), wanted)


def test_members_of_a_feedback_law_rest_at_their_goals() -> None:
    policy = PointGoalPolicy(gain=3.0, damping=2.0, half_width=1.5, action_dim=3)
    goals = policy.embeddings(torch.rand(50, 3, generator=torch.Generator().manual_seed(0)))
    assert goals.abs().max() <= 1.0
    assert goals.amin() < -0.9
    state = torch.zeros(50, 6)
    for _ in range(200):
        action = policy.act(state, goals)
        assert action.abs().max() <= 1.0
        velocity = state[:, 3:] + 0.1 * action
        state = torch.cat([state[:, :3] + 0.1 * velocity, velocity], -1)
    torch.testing.assert_close(state, torch.cat([1.5 * goals, torch.zeros(50, 3)], -1), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("policy", [LinearPolicy([[1.0]]), ConstantPolicy([0.0]), RandomPolicy(1)], ids=repr)
def test_a_single_policy_refuses_an_embedding(policy) -> None:
    assert policy.embedding_dim == 0
    assert policy.embeddings(torch.zeros(3, 0)).shape == (3, 0)
    assert policy.act(torch.zeros(3, 1), torch.zeros(3, 0)).shape == (3, 1)
    with pytest.raises(ValueError, match="dimension 0"):
        policy.act(torch.zeros(3, 1), torch.zeros(3, 2))


@one_test
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinearPolicy([[1.0], [1.0, 2.0]]), "[1, 2]"),
        (lambda: LinearPolicy([[1.0]], [0.0, 0.0]), "1 entries, one per row of gain, got 2"),
        (lambda: LinearPolicy([[1.0, 2.0]]).act(torch.zeros(3, 3)), "(3, 2), got (3, 3)"),
        (lambda: ConstantPolicy([1.5]), "1.5"),
        (lambda: RandomPolicy(0), "got 0"),
        (lambda: PointGoalPolicy(1.0, 1.0, 0.0), "half_width must be"),
        (lambda: PointGoalPolicy(1.0, 1.0, 1.0).act(torch.zeros(3, 4)), "no embedding"),
        (lambda: PointGoalPolicy(1.0, 1.0, 1.0).act(torch.zeros(3, 3), torch.zeros(3, 2)), "(3, 4), got (3, 3)"),
        (lambda: PolicyMixture([]), "single policies, at least one, got none"),
        (lambda: PolicyMixture([MazeGoalPolicy()]), "single policies, at least one, got ['MazeGoalPolicy']"),
        (lambda: PolicyMixture([RandomPolicy(1)]).act(torch.zeros(3, 1)), "got no embedding"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
