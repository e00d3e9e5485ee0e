"""Forward-backward representations as tables: successor measures, values and optimal policies of a finite chain."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.objectives import (
    forward_backward_loss,
    on_sphere,
    orthonormality_loss,
    reduced_members,
    reward_embedding,
    successor_density,
)
from flowmatch_rl.testbeds import TabularBackup

STATES, ACTIONS, DISCOUNT, SLIP = 6, 2, 0.8, 0.15
REWARDS = torch.stack(
    [
        torch.eye(STATES, dtype=torch.float64)[0],
        torch.eye(STATES, dtype=torch.float64)[4],
        torch.linspace(-1.0, 1.0, STATES, dtype=torch.float64).square(),
        torch.tensor([0.3, -1.0, 0.2, 0.8, -0.5, 0.6], dtype=torch.float64),
    ]
)
"""Rewards of the state arrived in, shape (K, N)."""
TOLERANCE = 0.15
"""Of values up to 5, for the noise of random batches."""


def kernels() -> Tensor:
    """Transition probabilities of a step to the left or to the right, which may slip, shape (A, N, N)."""
    left = torch.zeros(STATES, STATES, dtype=torch.float64)
    right = left.clone()
    for state in range(STATES):
        left[state, max(0, state - 1)] += 1.0
        right[state, min(STATES - 1, state + 1)] += 1.0
    return torch.stack([(1.0 - SLIP) * left + SLIP * right, (1.0 - SLIP) * right + SLIP * left])


def exact_measure(policy: Tensor) -> Tensor:
    """Successor measure of a policy given by probabilities (N, A), shape (N, A, N)."""
    moves = kernels()
    followed = torch.einsum("sa,ast->st", policy, moves)
    features = torch.eye(STATES, dtype=torch.float64)
    onward = TabularBackup.of_steps(features, followed, followed, DISCOUNT).fixed_point()
    return (moves + DISCOUNT * moves @ onward).movedim(0, 1)


def optimal_values(reward: Tensor) -> Tensor:
    """Optimal action values, shape (N, A), of a reward (N,)."""
    values = torch.zeros(STATES, ACTIONS, dtype=torch.float64)
    for _ in range(300):
        values = (kernels() @ (reward + DISCOUNT * values.amax(1))).T
    return values


class Tables:
    """F (K, N, A, d) and B (N, d) as tables with d = N, trained on random transitions for K rewards at once.

    Args:
        policy: Probabilities (N, A) of one policy that all K rows follow; None for the greedy ones of the rewards.
    """

    def __init__(self, policy: Tensor | None) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.policy, members = policy, len(REWARDS)
        self.kernels = kernels()
        self.arrivals = self.kernels.mean((0, 1))
        """Distribution of the states arrived in, shape (N,)."""
        start = torch.randn(STATES, STATES, dtype=torch.float64, generator=self.generator)
        self.backward = start.requires_grad_()
        self.forward = torch.zeros(members, STATES, ACTIONS, STATES, dtype=torch.float64, requires_grad=True)

    def embeddings(self) -> Tensor:
        """Embeddings of the rewards, shape (K, d)."""
        weighted = STATES * self.arrivals[:, None] * self.backward.detach()
        return torch.stack([reward_embedding(reward, weighted) for reward in REWARDS])

    def values(self) -> Tensor:
        """Action values of the rewards, shape (K, N, A)."""
        return torch.einsum("ksad,kd->ksa", self.forward.detach(), self.embeddings())

    def measures(self) -> Tensor:
        """Successor measures, shape (K, N, A, N)."""
        density = successor_density(self.forward.detach().flatten(1, 2), self.backward.detach())
        return density.reshape(self.forward.shape) * self.arrivals

    def train(self, updates: int, size: int = 256) -> None:
        optimizer = torch.optim.Adam([self.forward, self.backward], 0.05)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        older = self.forward.detach().clone(), self.backward.detach().clone()
        for _ in range(updates):
            state, action, row = (
                torch.randint(most, (size,), generator=self.generator) for most in (STATES, ACTIONS, len(REWARDS))
            )
            arrival = torch.multinomial(self.kernels[action, state], 1, generator=self.generator)[:, 0]
            if self.policy is None:
                following = self.values()[row, arrival].argmax(1)
            else:
                following = torch.multinomial(self.policy[arrival], 1, generator=self.generator)[:, 0]
            target = DISCOUNT * successor_density(older[0][row, arrival, following], older[1][arrival])
            backward = self.backward[arrival]
            loss = forward_backward_loss(self.forward[row, state, action][None], backward, target)
            optimizer.zero_grad()
            (loss + orthonormality_loss(backward)).mean().backward()
            optimizer.step()
            decay.step()
            for old, new in zip(older, (self.forward, self.backward), strict=True):
                old.lerp_(new.detach(), 0.1)


def test_tables_find_the_successor_measure_of_a_policy_and_its_values_for_all_rewards() -> None:
    policy = torch.tensor([0.3, 0.7], dtype=torch.float64).expand(STATES, -1)
    tables, exact = Tables(policy), exact_measure(policy)
    tables.train(1200)
    torch.testing.assert_close(exact.sum(-1), torch.full_like(exact[..., 0], 1.0 / (1.0 - DISCOUNT)))
    torch.testing.assert_close(tables.measures(), exact.expand(len(REWARDS), -1, -1, -1), atol=TOLERANCE, rtol=0.0)
    values = torch.einsum("sat,kt->ksa", exact, REWARDS)
    torch.testing.assert_close(tables.values(), values, atol=TOLERANCE, rtol=0.0)
    moment = torch.einsum("s,sd,se->de", tables.arrivals, tables.backward.detach(), tables.backward.detach())
    torch.testing.assert_close(moment, torch.eye(STATES, dtype=torch.float64), atol=0.02, rtol=0.0)


def test_greedy_tables_find_the_optimal_values_of_all_rewards() -> None:
    tables = Tables(None)
    tables.train(1200)
    exact = torch.stack([optimal_values(reward) for reward in REWARDS])
    torch.testing.assert_close(tables.values(), exact, atol=TOLERANCE, rtol=0.0)
    assert torch.equal(tables.values().argmax(-1), exact.argmax(-1))


def test_the_loss_compares_each_transition_with_the_arrivals_of_the_others() -> None:
    generator = torch.Generator().manual_seed(1)
    forward, backward, target = (
        torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 5, 3), (5, 3), (5, 5))
    )
    loss = forward_backward_loss(forward, backward, target)
    for i in range(5):
        wanted = 0.0
        for member in forward:
            others = [(member[i] @ backward[j] - target[i, j]) ** 2 for j in range(5) if j != i]
            wanted += float(sum(others) / 4.0 - 2.0 * member[i] @ backward[i]) / 2.0
        assert float(loss[i]) == pytest.approx(wanted)


def test_the_distance_from_orthonormality_is_unbiased() -> None:
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    exact = (states.T @ states / 4.0 - torch.eye(3, dtype=torch.float64)).square().sum()
    rows = torch.randint(4, (2000, 16), generator=generator)
    estimates = torch.stack([orthonormality_loss(states[row]).mean() for row in rows])
    assert float((estimates.mean() - exact).abs()) < 4.0 * float(estimates.std()) / 2000**0.5


def test_embeddings_lie_on_the_sphere_and_rewards_are_linear_in_theirs() -> None:
    embedding = torch.tensor([[3.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert on_sphere(embedding)[0].tolist() == pytest.approx([1.2, 0.0, 1.6, 0.0])
    assert on_sphere(embedding)[1].tolist() == [0.0] * 4
    backward, reward = torch.randn(7, 4), torch.randn(7)
    torch.testing.assert_close(reward_embedding(-3.0 * reward, backward), -3.0 * reward_embedding(reward, backward))
    members = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    assert reduced_members(members, "min").tolist() == [1.0, 2.0]
    assert reduced_members(members, "mean").tolist() == [2.0, 3.0]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 2 transitions, got 1"):
        forward_backward_loss(torch.zeros(1, 1, 3), torch.zeros(1, 3), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"expected forward of shape \(2, 4, 3\), got \(2, 4, 2\)"):
        forward_backward_loss(torch.zeros(2, 4, 2), torch.zeros(4, 3), torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"expected target of shape \(4, 4\), got \(4, 1\)"):
        forward_backward_loss(torch.zeros(2, 4, 3), torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="expected reward of shape"):
        reward_embedding(torch.zeros(4, 1), torch.zeros(4, 3))
