"""Estimators of the endpoint in actions of 2 to 38 dimensions, judged by the samples of trained policies.

Bandits with a known value: a product of bimodal coordinates, and a mixture of two Gaussians with full covariances
(``CorrelatedGaussians``, weights 0.6 and 0.4). Each policy is trained on the exact value by 1000 updates of batch 128:
two blocks of 128 units, five Euler steps, one particle. ``per_dimension`` is the energy distance of 2000 samples (of
fifty Euler steps) to exact ones over the number of dimensions, ``marginal`` the mean over dimensions of the energy
distance of each, ``first_mode`` the fraction of samples in the first Gaussian; all seeds are in each entry.

``milliseconds`` are CPU time of one estimate for 256 states and 38 dimensions, with two critics of 2 x 256 units, in
float32. Results are kept in ``runs/estimator_dimensions`` and are not measured twice.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    BlockMeanEstimator,
    ChainMeanEstimator,
    EndpointEstimator,
    LocalMeanEstimator,
    PosteriorMeanEstimator,
    boltzmann_density,
)
from flowmatch_rl.files import write_json
from flowmatch_rl.metrics import energy_distance, marginal_energy_distance
from flowmatch_rl.models import FlowPolicyArchitecture
from flowmatch_rl.modules.policy_learner import PolicyLearner
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching
from flowmatch_rl.paths import AffinePath, GaussianSource, PathPoints, TanhSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler
from flowmatch_rl.testbeds import Bandit, Bimodal, CorrelatedGaussians

RUNS = Path("runs/estimator_dimensions")
UPDATES, BATCH, SAMPLES = 1000, 128, 2000
POLICY = FlowPolicyArchitecture(
    sampler=OdeSampler(Euler(num_steps=5)), network=VelocityArchitecture(hidden_dim=128, num_blocks=2)
)
OBJECTIVE = ConditionalFlowMatching()
ESTIMATORS: dict[str, EndpointEstimator] = {
    "weighted, 100 samples (robust)": PosteriorMeanEstimator(100),
    "weighted, 16 samples (fast)": PosteriorMeanEstimator(16),
    "chain, 16": ChainMeanEstimator(16),
    "local, 16": LocalMeanEstimator(16),
    "chain, 8": ChainMeanEstimator(8, num_starts=2),
    "chain from the endpoint, 16": ChainMeanEstimator(16, num_starts=0),
    "blocks from the endpoint, 16": BlockMeanEstimator(16),
}
ROBUST, FAST, CHAIN, LOCAL = tuple(ESTIMATORS)[:4]
SEEDS = (1, 2, 3)
"""Seed 0 chose the settings of the chains."""

CASES: Sequence[tuple[Bandit, str, tuple[int, ...]]] = (
    *((CorrelatedGaussians(38), name, SEEDS) for name in (LOCAL, CHAIN, FAST)),
    (CorrelatedGaussians(38), ROBUST, (1,)),
    *((CorrelatedGaussians(21), name, SEEDS) for name in (LOCAL, CHAIN)),
    (CorrelatedGaussians(21), FAST, (1,)),
    *((CorrelatedGaussians(6), name, (*SEEDS, 4, 5)) for name in (LOCAL, ROBUST)),
    (CorrelatedGaussians(6), CHAIN, SEEDS),
    *((CorrelatedGaussians(6), name, (1,)) for name in ("chain from the endpoint, 16", "blocks from the endpoint, 16")),
    *((CorrelatedGaussians(2), name, SEEDS) for name in (LOCAL, CHAIN, ROBUST)),
    (CorrelatedGaussians(2), FAST, SEEDS[:2]),
    *((Bimodal(38), name, (1,)) for name in (CHAIN, FAST)),
    *((Bimodal(6), name, (1,)) for name in (CHAIN, ROBUST)),
    *((Bimodal(2), name, (1,)) for name in (CHAIN, ROBUST)),
)
"""Bandits and estimators in the order of the table, with their seeds."""


def run() -> dict[str, Any]:
    """Train what is missing; one row per bandit and estimator."""
    for place in range(max(len(seeds) for _, _, seeds in CASES)):
        for bandit, name, seeds in CASES:
            if place < len(seeds):
                trained(bandit, name, seeds[place])
    milliseconds = cost()
    rows = [row(bandit, name, seeds, milliseconds[name]) for bandit, name, seeds in CASES]
    return {"title": "Estimators in many dimensions", "updates": UPDATES, "batch": BATCH, "rows": rows}


def row(bandit: Bandit, name: str, seeds: tuple[int, ...], milliseconds: float) -> dict[str, Any]:
    """What was found of an estimator on a bandit, all seeds in each entry."""
    found = [trained(bandit, name, seed) for seed in seeds]

    def of(key: str, form: str) -> str:
        return ", ".join(form.format(each[key]) for each in found)

    return {
        "bandit": bandit.label,
        "estimator": name,
        "evaluations": ESTIMATORS[name].num_samples,
        "per_dimension": of("per_dimension", "{:.4f}"),
        "marginal": of("marginal", "{:.4f}"),
        "first_mode": of("first_mode", "{:.2f}") if isinstance(bandit, CorrelatedGaussians) else "-",
        "milliseconds": milliseconds,
    }


def trained(bandit: Bandit, name: str, seed: int) -> dict[str, float]:
    """Distances of a policy that is trained with an estimator, trained if they are not there."""
    path = RUNS / f"{bandit.label}_{name.replace(' ', '_').replace(',', '')}_{seed}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure(bandit, name, seed))
    found: dict[str, float] = json.loads(path.read_text())
    print(bandit.label, name, seed, found, flush=True)
    return found


def measure(bandit: Bandit, name: str, seed: int) -> dict[str, float]:
    """Train a policy with an estimator and measure its samples."""
    torch.manual_seed(seed)
    policy = POLICY.build(1, bandit.action_dim, OBJECTIVE)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4)
    learner = PolicyLearner(policy, OBJECTIVE, ESTIMATORS[name])
    density = boltzmann_density(bandit.value_and_gradient, 1.0, policy.squash)
    observation, began = torch.zeros(BATCH, 1), time.process_time()
    for _ in range(UPDATES):
        x_1 = policy.sample_latents(observation[:1], torch.randn(1, BATCH, bandit.action_dim))[0]
        loss, _ = learner.loss(observation, x_1, density)
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
    spent = time.process_time() - began
    generator = torch.Generator().manual_seed(1234)
    exact = bandit.sample(torch.rand(SAMPLES, bandit.action_dim, generator=generator, dtype=torch.float64)).float()
    noise = torch.randn(1, SAMPLES, bandit.action_dim, generator=generator)
    actions = policy.squash.action(policy.flow.sample(noise, OdeSampler(Euler(50)), torch.zeros(1, 1, 1))[0])
    return {
        "per_dimension": float(energy_distance(actions, exact)) / bandit.action_dim,
        "marginal": float(marginal_energy_distance(actions, exact)),
        "first_mode": float(bandit.mode_shares(actions)[0]),
        "ms_per_update": 1e3 * spent / UPDATES,
    }


def cost(dim: int = 38, states: int = 256, observation_dim: int = 64, calls: int = 3) -> dict[str, float]:
    """CPU milliseconds of one estimate by name."""
    torch.manual_seed(0)
    critic = CriticArchitecture(num_members=2, hidden_dim=256, num_layers=2).build(observation_dim, dim)
    observation, path = torch.randn(states, observation_dim), AffinePath()

    def value_and_gradient(actions: Tensor) -> tuple[Tensor, Tensor]:
        return critic.action_values_and_gradients(observation, actions, "min")

    density = boltzmann_density(value_and_gradient, 0.1, TanhSquash())
    points = PathPoints.between(path, torch.randn(states, dim), torch.randn(states, dim), torch.rand(states))

    found = {}
    for name, estimator in ESTIMATORS.items():
        z = torch.randn(states, estimator.num_samples, estimator.num_draws * dim)
        spent = 0.0
        for call in range(calls + 1):
            began = time.process_time()
            with torch.no_grad():
                estimator.estimate(path, GaussianSource(), density, points, z)
            spent += time.process_time() - began if call else 0.0  # the first warms up
        found[name] = 1e3 * spent / calls
    return found
