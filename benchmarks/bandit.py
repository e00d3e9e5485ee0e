"""Bandits with a known action value: how close samples of a trained flow come to the exact Boltzmann distribution.

No critic: the estimator and the objective alone, 1500 updates of batch 256 with 100 samples, x_t on the path to a
sample of the present policy.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.bandits import FourModes
from flowmatch_rl.estimators import (
    LikelihoodProposal,
    PathPoints,
    PosteriorMeanEstimator,
    ProductProposal,
    Proposal,
    boltzmann_density,
)
from flowmatch_rl.metrics import energy_distance, saturated_share
from flowmatch_rl.nets import FlowPolicy, VelocityArchitecture
from flowmatch_rl.objectives import prediction_loss, reverse_flow_target
from flowmatch_rl.paths import AffinePath, GaussianSource, TanhSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler

BANDIT = FourModes()


def train(
    density: Callable[[Tensor], tuple[Tensor, Tensor]], dim: int, proposal: Proposal, seed: int, updates: int = 1500
) -> FlowPolicy:
    """Train an unconditional flow toward a density over actions."""
    torch.manual_seed(seed)
    path, squash, t_min = AffinePath(), TanhSquash(), 0.01
    estimator = PosteriorMeanEstimator(num_samples=100, proposal=proposal)
    network = VelocityArchitecture().build(dim, 1)
    policy = FlowPolicy(network, path, OdeSampler(Euler(10)), squash, t_min)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4, fused=True)
    latent = boltzmann_density(density, 1.0, squash)
    state = torch.zeros(256, 1)
    for _ in range(updates):
        x_1 = policy.sample_latents(state, torch.randn(256, 1, dim))[:, 0]
        t = t_min + (1 - 2 * t_min) * torch.rand(256)
        points = PathPoints.between(path, torch.randn_like(x_1), x_1, t)
        z = torch.randn(256, 100, dim)
        means = reverse_flow_target(estimator, path, GaussianSource(), latent, points, z)
        target = path.target("velocity", means.x_0, means.x_1, t)
        loss = prediction_loss(policy.predict, points.x_t, t, target, state).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def sample(policy: FlowPolicy, dim: int, steps: int, number: int = 3000) -> Tensor:
    """Actions of a trained flow."""
    other = FlowPolicy(policy.network, policy.path, OdeSampler(Euler(steps)), policy.squash, policy.t_min)
    return policy.squash.action(other.sample_latents(torch.zeros(1, 1), torch.randn(1, number, dim))[0])


def exact_samples(seed: int, number: int = 3000) -> Tensor:
    """Exact samples of the law."""
    return BANDIT.sample(torch.rand(number, 2, generator=torch.Generator().manual_seed(seed)))


def run(seeds: int = 2, updates: int = 1500) -> dict[str, Any]:
    """Train with both proposals; returns one row per proposal and seed."""
    rows = []
    for proposal in (ProductProposal(), LikelihoodProposal()):
        for seed in range(seeds):
            policy = train(BANDIT.value_and_gradient, 2, proposal, seed, updates)
            exact = exact_samples(1000 + seed)
            row: dict[str, Any] = {"proposal": type(proposal).__name__, "seed": seed}
            for steps in (10, 50):
                actions = sample(policy, 2, steps)
                row[f"energy_distance_{steps}_steps"] = float(energy_distance(actions, exact))
            shares = BANDIT.mode_shares(actions)
            row |= {"smallest_mode": float(shares.min()), "largest_mode": float(shares.max())}
            row["saturated"] = float(saturated_share(actions))
            rows.append(row)
    floor = [exact_samples(seed) for seed in (1, 2)]
    return {
        "title": "Bandit with four modes in two dimensions",
        "noise_floor": float(energy_distance(*floor)),
        "rows": rows,
    }
