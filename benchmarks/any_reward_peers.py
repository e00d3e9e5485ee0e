"""Other methods on the data and rewards of ``any_reward``, with as many minutes: one thread of the same machine.

Forward-backward representations learn from the data without rewards for as long as occupancy, future states, one-step
model and one reward take together; flow Q-learning learns each reward from relabelled transitions for as long as
``improve`` does. The weight of its distillation, 0.1, did better than 1 on the mean of two rewards.
Returns are undiscounted, means over the same 100 episodes. What was measured is kept under ``runs/any_reward``.
"""

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.any_reward import REWARDS, SEEDS, WORLD, follow
from benchmarks.forward_backward import evaluate, trained
from benchmarks.occupancy_runs import fitted_module
from flowmatch_rl.data import PolicyData
from flowmatch_rl.models import ForwardBackwardModel
from flowmatch_rl.modules import Critics, FlowQLearning
from flowmatch_rl.types import Reward

REPRESENTATION_UPDATES, UPDATES, ALPHA = 10_000, 1_500, 0.1
LEARNED = tuple(REWARDS)[:9]
"""Rewards for flow Q-learning, with the first seed."""


def flow_q_learning(reward: Reward, seed: int) -> dict[str, float]:
    """Mean return of flow Q-learning on the data with this reward, and CPU seconds of its training."""
    data = PolicyData("data/maze", num_updates=UPDATES, epoch_updates=UPDATES, verify=False, reward=reward)
    options: dict[str, Any] = {"alpha": ALPHA, "normalise_values": True, "critics": Critics(ema_decay=0.99)}
    module, _, seconds = fitted_module(data, seed, lambda: FlowQLearning(**data.dimensions, discount=0.95, **options))
    generator = torch.Generator().manual_seed(0)
    actor = module.cpu().eval().actor("eval")
    returns, _ = WORLD.paid(follow(lambda states: actor(states, generator)), reward)
    return {"return": float(returns.mean()), "seconds": seconds}


def run(seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """One row per reward: returns of all seeds, of flow Q-learning the first one's."""
    WORLD.collect()
    found: dict[str, list[list[float]]] = {name: [[], []] for name in REWARDS}
    for seed in seeds:
        models: list[tuple[ForwardBackwardModel, float]] = []

        def represented(reward: Reward, seed: int = seed, models: list[Any] = models) -> dict[str, float]:
            if not models:
                module, seconds = trained("data/maze", REPRESENTATION_UPDATES, seed)
                models.append((module.model, seconds))
            return evaluate(models[0][0], reward) | {"seconds": models[0][1]}

        for name, reward in REWARDS.items():
            row = WORLD.kept(seed, name, "forward_backward", lambda r=reward: represented(r))
            found[name][0].append(row["return"])
            if seed == seeds[0] and name in LEARNED:
                row = WORLD.kept(seed, name, "flow_q_learning", lambda r=reward, s=seed: flow_q_learning(r, s))
                found[name][1].append(row["return"])
    return {
        "title": "Forward-backward representations and flow Q-learning on the rewards of any_reward",
        "seeds": len(seeds),
        "rows": [
            {"reward": name, "forward_backward": _listed(represented), "flow_q_learning": _listed(learned)}
            for name, (represented, learned) in found.items()
        ],
    }


def _listed(returns: Sequence[float]) -> str:
    return ", ".join(f"{each:.4g}" for each in returns) or "-"
