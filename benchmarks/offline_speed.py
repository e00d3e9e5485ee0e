"""Updates per second of the methods that learn from data sets, beside a loop of flow Q-learning in bare PyTorch.

All have the same sizes: two critics of three layers of 256 units with layer norm, flows of three layers of 128, batches
of 256, ten steps of a flow. The bare loop draws its rows from tensors in memory, and neither logs nor evaluates nor
keeps checkpoints. Seconds are CPU time of one thread; the rounds alternate and the best of each counts. With the
variables that ``offline_peer`` needs, its authors' JAX code is measured too.
"""

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.offline_peer import run_peer
from flowmatch_rl.data import PolicyData, TransitionStore, collect_transitions
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.estimators import PriorMeanEstimator
from flowmatch_rl.models import FlowPolicyArchitecture, OneStepPolicyArchitecture
from flowmatch_rl.modules import BehaviorCloning, FlowQLearning, ImplicitFlowQLearning, TiltedFlowActorCritic
from flowmatch_rl.modules.settings import Critics, TrainingPoints
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.paths import ClipSquash

BATCH, CRITIC_UNITS, FLOW_UNITS, FLOW_STEPS, ALPHA, DISCOUNT, DECAY = 256, 256, 128, 10, 10.0, 0.99, 0.995
BARE, PEER = "flow Q-learning, bare PyTorch", "flow Q-learning, authors' JAX"
NETWORK = VelocityArchitecture(hidden_dim=FLOW_UNITS)
FLOW = FlowPolicyArchitecture(squash=ClipSquash(), network=NETWORK)
CRITICS = Critics(CriticArchitecture(hidden_dim=CRITIC_UNITS, num_layers=3, layer_norm=True), "mean")


def run(updates: int = 300, rounds: int = 3) -> dict[str, Any]:
    """Measure; returns one row per method, the bare loop first."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says about loaders and missing loggers
        path = str(Path(folder) / "data")
        store = collect_transitions(GymnasiumEnvironment("HalfCheetah-v5"), path, 20_000, progress=False)
        jobs: dict[str, Callable[[], None]] = {BARE: bare_loop(store, updates)}
        data = PolicyData(path, num_updates=updates, epoch_updates=updates, verify=False)
        for name, module in modules(data).items():
            jobs[name] = trained(module, data)
        best = dict.fromkeys(jobs, float("inf"))
        for _ in range(rounds):
            if "FQL_REPOSITORY" in os.environ:
                rate = run_peer(store, updates, seed=0, n_steps=1, episodes=0)["updates_per_s"]
                best[PEER] = min(best.get(PEER, float("inf")), 1.0 / rate)
            for name, job in jobs.items():
                began = time.thread_time()
                job()
                best[name] = min(best[name], (time.thread_time() - began) / updates)
    bare = best[BARE]
    rows = [
        {"method": name, "ms_per_update": 1e3 * seconds, "updates_per_s": 1.0 / seconds, "to_bare_loop": seconds / bare}
        for name, seconds in best.items()
    ]
    return {"title": "Updates of policies from data", "updates": updates, "rows": rows}


def modules(data: PolicyData) -> dict[str, LightningModule]:
    """The methods, of the same sizes."""
    shapes, pair = data.dimensions, {"policy": FLOW, "behavior": FLOW}
    one_step = OneStepPolicyArchitecture(NETWORK, ClipSquash())
    prior, points = PriorMeanEstimator(num_samples=8), TrainingPoints("replay", batch_size=64)
    return {
        "flow Q-learning": FlowQLearning(**shapes, policy=one_step, behavior=FLOW, critics=CRITICS),
        "behaviour cloning": BehaviorCloning(**shapes, policy=FLOW),
        "implicit flow Q-learning": ImplicitFlowQLearning(**shapes, policy=FLOW, critics=CRITICS),
        "energy-weighted": TiltedFlowActorCritic(**shapes, **pair, critics=CRITICS),
        "prior": TiltedFlowActorCritic(**shapes, **pair, critics=CRITICS, estimator=prior, points=points),
    }


def trained(module: LightningModule, data: PolicyData) -> Callable[[], None]:
    """A training of one epoch by Lightning, with what every run has but evaluations and files."""

    def job() -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            max_epochs=1,
            limit_val_batches=0,
            enable_model_summary=False,
            accelerator="cpu",
            log_every_n_steps=100,
            **quiet,
        )
        trainer.fit(module, datamodule=data)

    return job


def bare_loop(store: TransitionStore, updates: int) -> Callable[[], None]:
    """Flow Q-learning as one would write it in one file."""
    rows = {key: store.transitions.get(key).float() for key in ("observation", "action")}
    following = {key: store.transitions.get(("next", key)).float() for key in ("observation", "reward", "terminated")}
    states, actions = rows["observation"].shape[1], rows["action"].shape[1]
    behavior, policy = _mlp(states + actions + 1, FLOW_UNITS, actions), _mlp(states + actions, FLOW_UNITS, actions)
    critics = nn.ModuleList(_mlp(states + actions, CRITIC_UNITS, 1, nn.ReLU, norm=True) for _ in range(2))
    target = copy.deepcopy(critics).requires_grad_(False)
    networks = nn.ModuleList([behavior, policy, critics])
    optimizer = torch.optim.Adam(networks.parameters(), 3e-4, fused=True)

    def value(ensemble: nn.ModuleList, state: Tensor, action: Tensor) -> Tensor:
        pair = torch.cat([state, action], -1)
        return torch.stack([critic(pair) for critic in ensemble])

    def update() -> None:
        drawn = torch.randint(len(rows["action"]), (BATCH,))
        state, action = (each[drawn] for each in rows.values())
        arrival, reward, terminated = (each[drawn] for each in following.values())
        with torch.no_grad():
            taken = policy(torch.cat([arrival, torch.randn_like(action)], -1)).clamp(-1.0, 1.0)
            wanted = reward + DISCOUNT * (1.0 - terminated) * value(target, arrival, taken).mean(0)
            noise = torch.randn_like(action)
            cloned = noise
            for step in range(FLOW_STEPS):
                times = torch.full_like(reward, step / FLOW_STEPS)
                cloned = cloned + behavior(torch.cat([state, cloned, times], -1)) / FLOW_STEPS
        critic_loss = (value(critics, state, action) - wanted).square().mean()
        times, start = torch.rand_like(reward), torch.randn_like(action)
        along = torch.lerp(start, action, times)
        cloning_loss = functional.mse_loss(behavior(torch.cat([state, along, times], -1)), action - start)
        proposed = policy(torch.cat([state, noise], -1))
        near = functional.mse_loss(proposed, cloned.clamp(-1.0, 1.0))
        critics.requires_grad_(False)
        policy_loss = ALPHA * near - value(critics, state, proposed.clamp(-1.0, 1.0)).mean()
        critics.requires_grad_(True)
        optimizer.zero_grad()
        (critic_loss + cloning_loss + policy_loss).backward()
        optimizer.step()
        torch._foreach_lerp_(list(target.parameters()), list(critics.parameters()), 1.0 - DECAY)

    def job() -> None:
        for _ in range(updates):
            update()

    return job


def _mlp(inputs: int, units: int, outputs: int, act: type[nn.Module] = nn.GELU, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (inputs, units, units):
        layers += [nn.Linear(size, units), *([nn.LayerNorm(units)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(units, outputs))
