"""Policies relative to a behaviour whose distribution is known: two modes in the plane, tilted by a quadratic value.

The behaviour is a mixture of two normals, of which the data are samples, and the value is known, without critics: the
tilted distribution is again a mixture of two normals. ``energy_distance`` is that of 4000 actions to as many exact
ones, ``floor`` that of two exact samples; ``mode`` is the fraction of the actions in the mode of higher value.
Flow Q-learning has no temperature; it is run with several weights. Seconds are CPU time of one thread, the training of
the behaviour flow included.
"""

import time
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.estimators import (
    EndpointEstimator,
    FisherControlVariate,
    MarginalProposal,
    NoControlVariate,
    PosteriorProposal,
    Prior,
    PriorMeanEstimator,
    ReweightedEndpoints,
    boltzmann_density,
)
from flowmatch_rl.metrics import energy_distance
from flowmatch_rl.models import FlowPolicy, FlowPolicyArchitecture, OneStepPolicyArchitecture
from flowmatch_rl.modules.policy_learner import PolicyLearner
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, distilled_policy_loss
from flowmatch_rl.paths import ClipSquash, GaussianMixture
from flowmatch_rl.samplers import OdeSampler, SdeSampler
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import TiltedMixture

PROBLEM, TEMPERATURE = TiltedMixture(), 1.0
NETWORK = VelocityArchitecture(hidden_dim=128, max_frequency=10.0, balanced_inputs=True)
FLOW = FlowPolicyArchitecture(squash=ClipSquash(2.0), network=NETWORK, sampler=OdeSampler(Midpoint(num_steps=25)))
OBJECTIVE = ConditionalFlowMatching()
ESTIMATORS: dict[str, EndpointEstimator] = {
    "prior, posterior samples": PriorMeanEstimator(8, PosteriorProposal(SdeSampler(8)), NoControlVariate()),
    "prior, posterior samples, Stein": PriorMeanEstimator(8, PosteriorProposal(SdeSampler(8)), FisherControlVariate()),
    "prior, samples of the flow, Stein": PriorMeanEstimator(32, MarginalProposal(), FisherControlVariate()),
    "energy-weighted": ReweightedEndpoints(),
}
ALPHAS = (1.0, 3.0, 10.0, 30.0)
NUMBER = 4_000


def run(updates: int = 3_000, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Train every method with every seed; one row each."""
    rows = []
    for seed in seeds:
        for name, estimator in ESTIMATORS.items():
            rows.append(_row(name, *_tilted(estimator, updates, seed), seed))
            print(rows[-1], flush=True)
        for alpha in ALPHAS:
            rows.append(_row(f"flow Q-learning, alpha {alpha:g}", *_distilled(alpha, updates, seed), seed))
            print(rows[-1], flush=True)
    return {"title": "Tilted distributions of a known behaviour in the plane", "updates": updates, "rows": rows}


def draw(mixture: GaussianMixture, number: int, generator: torch.Generator) -> Tensor:
    """Samples of a mixture."""
    uniform, z = torch.rand(number, generator=generator), torch.randn(number, 2, generator=generator)
    return mixture.draw(uniform, z).float()


def _batches(seed: int, size: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return draw(PROBLEM.behavior, 100_000, generator)


def _cloned(data: Tensor, updates: int) -> FlowPolicy:
    """A behaviour flow of the data."""
    flow = FLOW.build(1, 2, OBJECTIVE)
    optimizer, schedule = _optimizer(flow, updates)
    for _ in range(updates):
        action = data[torch.randint(len(data), (256,))]
        _step(flow.cloning_loss(OBJECTIVE, torch.zeros(256, 1), action).mean(), optimizer, schedule)
    return flow


def _tilted(estimator: EndpointEstimator, updates: int, seed: int) -> tuple[FlowPolicy, float]:
    data, began = _batches(seed), time.thread_time()
    policy = FLOW.build(1, 2, OBJECTIVE)
    behavior = _cloned(data, updates) if estimator.needs_prior else policy
    learner, (optimizer, schedule) = PolicyLearner(policy, OBJECTIVE, estimator), _optimizer(policy, updates)
    density = boltzmann_density(PROBLEM.value_and_gradient, TEMPERATURE, policy.squash, jacobian=False)
    for _ in range(updates):
        x_1, observation = data[torch.randint(len(data), (256,))], torch.zeros(256, 1)
        prior = Prior(behavior.flow.field().at(observation[:, None]), behavior.flow.interval)
        _step(learner.loss(observation, x_1, density, prior)[0].mean(), optimizer, schedule)
    return policy, time.thread_time() - began


def _distilled(alpha: float, updates: int, seed: int) -> tuple[Any, float]:
    data, began = _batches(seed), time.thread_time()
    behavior = _cloned(data, updates)
    policy = OneStepPolicyArchitecture(NETWORK, ClipSquash(2.0)).build(1, 2)
    optimizer, schedule = _optimizer(policy, updates)
    for _ in range(updates):
        noise, observation = torch.randn(256, 2), torch.zeros(256, 1)
        latent = policy(observation, noise)
        action = policy.squash.action(latent)
        cloned = behavior.sample_latents(observation, noise[:, None])[:, 0]
        gradient = PROBLEM.value_and_gradient(action.detach())[1]
        _step(distilled_policy_loss(latent, action, gradient, cloned, alpha).mean(), optimizer, schedule)
    return policy, time.thread_time() - began


def _optimizer(network: torch.nn.Module, updates: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _row(name: str, policy: Any, seconds: float, seed: int) -> dict[str, Any]:
    generator, exact = torch.Generator().manual_seed(100 + seed), PROBLEM.tilted(TEMPERATURE)
    noise = torch.randn(NUMBER, 1, 2, generator=generator)
    found = policy.squash.action(policy.sample_latents(torch.zeros(NUMBER, 1), noise)[:, 0])
    one, other = (draw(exact, NUMBER, generator) for _ in range(2))
    nearest = torch.cdist(found, exact.means.float()).argmin(1)
    best = int(exact.weights.argmax())
    return {
        "method": name,
        "seed": seed,
        "energy_distance": float(energy_distance(found, one)),
        "floor": float(energy_distance(other, one)),
        "to_behavior": float(energy_distance(draw(PROBLEM.behavior, NUMBER, generator), one)),
        "mode": float((nearest == best).float().mean()),
        "exact_mode": float(exact.weights[best]),
        "value": float(PROBLEM.value_and_gradient(found)[0].mean()),
        "exact_value": float(PROBLEM.value_and_gradient(one)[0].mean()),
        "seconds": seconds,
    }
