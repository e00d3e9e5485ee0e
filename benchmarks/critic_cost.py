"""What an update of critics costs, and the values that a policy learns from, by their layers and heads.

Sizes of cheetah-run, batch 256, two critics, float32, in CPU time of one thread. The values are those of 8 actions in
each of 64 states with their gradients, which an update of the preset ``lean`` takes.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import milliseconds
from flowmatch_rl.batches import Transition
from flowmatch_rl.modules.critic_learner import CriticLearner, Critics
from flowmatch_rl.nets import (
    BatchNormLayers,
    CategoricalHead,
    CriticArchitecture,
    FlowHead,
    PostNormBlocks,
    PreNormBlocks,
    QuantileHead,
    update_ema,
)

OBSERVATIONS, ACTIONS, BATCH, STATES, SAMPLES = 17, 6, 256, 64, 8
VARIANTS = {
    "plain, 2 layers of 256": Critics(CriticArchitecture()),
    "plain, layer norm": Critics(CriticArchitecture(layer_norm=True)),
    "plain, normalised features": Critics(CriticArchitecture(normalised_features=True)),
    "SimBa, 2 blocks of 256": Critics(CriticArchitecture(layers=PreNormBlocks())),
    "SimBa, 1 block of 256": Critics(CriticArchitecture(num_layers=1, layers=PreNormBlocks())),
    "SimBa, 2 blocks of 128": Critics(CriticArchitecture(hidden_dim=128, layers=PreNormBlocks())),
    "BRO, 2 blocks of 256": Critics(CriticArchitecture(layers=PostNormBlocks())),
    "BRO, 1 block of 256": Critics(CriticArchitecture(num_layers=1, layers=PostNormBlocks())),
    "CrossQ, 2 layers of 256": Critics(CriticArchitecture(layers=BatchNormLayers()), ema_decay=0.0, joint_batch=True),
    "plain, categorical, 101 atoms": Critics(CriticArchitecture(head=CategoricalHead())),
    "plain, 32 quantiles": Critics(CriticArchitecture(head=QuantileHead())),
    "plain, flow": Critics(CriticArchitecture(head=FlowHead())),
}


def _calls(critics: Critics) -> tuple[Callable[[], object], Callable[[], object]]:
    """An update of critics with their target networks, and an evaluation for a policy."""
    torch.manual_seed(0)
    learner = CriticLearner(critics, OBSERVATIONS, ACTIONS, 0.99)
    optimizer = torch.optim.Adam(learner.online.parameters(), fused=True)
    transition = Transition(
        observation=torch.randn(BATCH, OBSERVATIONS),
        action=torch.randn(BATCH, ACTIONS).tanh(),
        rewards=torch.rand(BATCH, 1),
        next_observation=torch.randn(BATCH, OBSERVATIONS),
        terminated=torch.zeros(BATCH, dtype=torch.bool),
        length=torch.ones(BATCH, dtype=torch.long),
    )
    next_action = torch.randn(BATCH, ACTIONS).tanh()
    states, actions = torch.randn(STATES, OBSERVATIONS), torch.randn(STATES, SAMPLES, ACTIONS).tanh()

    def update() -> None:
        optimizer.zero_grad()
        learner.loss(transition, next_action).mean().backward()
        optimizer.step()
        if not critics.joint_batch:
            update_ema(learner.target, learner.online, critics.ema_decay)

    return update, lambda: learner.online.action_values_and_gradients(states, actions)


def run(rounds: int = 10) -> dict[str, Any]:
    """Measure; returns one row per kind of critics."""
    torch.set_num_threads(1)
    calls = {name: _calls(critics) for name, critics in VARIANTS.items()}
    updates = milliseconds({name: update for name, (update, _) in calls.items()}, rounds, 5, time.process_time)
    values = milliseconds({name: value for name, (_, value) in calls.items()}, rounds, 5, time.process_time)
    plain = next(iter(VARIANTS))
    rows = [
        {
            "critics": name,
            "update_ms": updates[name],
            "update_ratio": updates[name] / updates[plain],
            "values_ms": values[name],
            "values_ratio": values[name] / values[plain],
        }
        for name in VARIANTS
    ]
    return {"title": "Cost of critics, sizes of cheetah-run", "threads": 1, "rows": rows}
