"""A flow head on a linear-Gaussian chain, whose returns have a known distribution."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.modules.critic_learner import CriticLearner, Critics
from flowmatch_rl.nets import CriticArchitecture, FlowHead, update_ema

DECAY, NOISE, DISCOUNT = 0.8, 0.6, 0.7
"""The chain ``s' = DECAY s + NOISE w`` with standard normal w and the reward s."""

MEAN_SLOPE = 1.0 / (1.0 - DISCOUNT * DECAY)
STD = DISCOUNT * NOISE * MEAN_SLOPE / math.sqrt(1.0 - DISCOUNT**2)
"""The return is Gaussian with the mean ``MEAN_SLOPE s`` and this standard deviation."""

DRAWS, STATES = 500, 7


def trained(seed: int, updates: int) -> CriticLearner:
    """Critics on fresh transitions of the chain; the action has no effect."""
    torch.manual_seed(seed)
    architecture = CriticArchitecture(1, 32, 2, head=FlowHead(spread=2.0))
    learner = CriticLearner(Critics(architecture, "mean"), 1, 1, DISCOUNT)
    optimizer = torch.optim.Adam(learner.online.parameters(), lr=3e-3)
    for step in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * math.cos(0.5 * math.pi * step / updates)
        state = torch.randn(256, 1) * 1.2
        transition = Transition(
            observation=state,
            action=torch.zeros(256, 1),
            rewards=state,
            next_observation=DECAY * state + NOISE * torch.randn(256, 1),
            terminated=torch.zeros(256, dtype=torch.bool),
            length=torch.ones(256, dtype=torch.long),
        )
        optimizer.zero_grad()
        learner.loss(transition, transition.action).mean().backward()
        optimizer.step()
        update_ema(learner.target, learner.online, 0.95)
    return learner


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Mean over the rows of the distance of two samples (R, N)."""
    return float((a.sort(-1).values - b.sort(-1).values).abs().mean())


def errors_of(learner: CriticLearner) -> tuple[float, float, float]:
    """Distance of the returns of the critic from exact ones, of two exact samples, and largest error of the values."""
    state = torch.linspace(-1.5, 1.5, STATES)[:, None]
    generator = torch.Generator().manual_seed(0)
    noise, first, second = torch.randn(3, STATES, DRAWS, generator=generator)
    with torch.no_grad():
        outputs = learner.online.outputs(state, torch.zeros(STATES, 1))[0]
        returns = learner.online.head.sample(outputs, noise)  # pyright: ignore[reportAttributeAccessIssue]
        error = (learner.online.head.values(outputs) - MEAN_SLOPE * state[:, 0]).abs().max()
    exact, other = (MEAN_SLOPE * state + STD * draws for draws in (first, second))
    return wasserstein(returns, exact), wasserstein(exact, other), float(error)


def test_the_stated_distribution_is_that_of_returns_of_the_chain() -> None:
    generator = torch.Generator().manual_seed(1)
    state, total = torch.full((40_000,), 0.5), torch.zeros(40_000)
    for step in range(40):
        total += DISCOUNT**step * state
        state = DECAY * state + NOISE * torch.randn(40_000, generator=generator)
    assert float(total.mean()) == pytest.approx(0.5 * MEAN_SLOPE, abs=0.03)
    assert float(total.std()) == pytest.approx(STD, rel=0.02)


def test_the_returns_of_the_critic_are_as_near_to_exact_ones_as_two_samples_are() -> None:
    found, floor, error = errors_of(trained(seed=0, updates=1200))
    assert found < 2.0 * floor
    assert error < 0.15
