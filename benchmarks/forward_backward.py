"""Policies for any reward of the maze by a forward-backward representation, on the data and rewards of planning.

One representation is trained on random forces at discount 0.95 without any reward, about as long as the model of
``occupancy_planning``. Each reward is then turned into an embedding by its values at 10,000 states of the data, and
the policy of the embedding acts in episodes of 120 decisions from the same starts. Returns are undiscounted, means over
100 episodes; beside them the discounted value at the starts that the representation predicts, and the one that came.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.occupancy_planning import DISCOUNT, EPISODES, MAZE, REWARDS, STEPS
from benchmarks.occupancy_runs import collected, fitted_module
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.models import ForwardBackwardModel
from flowmatch_rl.modules import FlowOptimizer, ForwardBackward
from flowmatch_rl.nets import EmaSettings, ForwardBackwardArchitecture
from flowmatch_rl.testbeds import PointMassMaze
from flowmatch_rl.types import Reward

UPDATES = 8_000
SETTINGS: dict[str, Any] = {
    "discount": DISCOUNT,
    "architecture": ForwardBackwardArchitecture(embedding_dim=64, num_frequencies=2),
    "ema": EmaSettings(0.95),
    "optimizer": FlowOptimizer(1e-3),
}
"""Those of ``conf/forward_backward/maze.yaml``."""


def evaluate(model: ForwardBackwardModel, reward: Reward) -> dict[str, float]:
    """Mean return of the policy of a reward, and its value at the starts by the model and as it came."""
    state = MAZE.start(torch.randn(EPISODES, 4, generator=torch.Generator().manual_seed(5)))
    known = reward.evaluate(model.references, MAZE.columns)
    embedding = model.embedding(known - known.mean())  # a constant changes no policy here, see load_forward_backward
    predicted = model.value(state, model.act(state, embedding), embedding, model.embedding(known))
    rewards = []
    for _ in range(STEPS):
        state, _ = MAZE.step(state, model.act(state, embedding), torch.zeros(EPISODES, 4))
        rewards.append(reward.evaluate(state, MAZE.columns))
    paid = torch.stack(rewards)
    weights = DISCOUNT ** torch.arange(STEPS)
    return {
        "return": float(paid.sum(0).mean()),
        "standard_error": float(paid.sum(0).std() / EPISODES**0.5),
        "predicted_value": float(predicted.mean()),
        "value": float((weights[:, None] * paid).sum(0).mean()),
    }


def trained(path: str, updates: int, seed: int = 0) -> tuple[ForwardBackward, float]:
    """A representation trained on a data set, and CPU seconds of the training."""
    data = OfflineData(path, batch_size=256, num_updates=updates, epoch_updates=updates)
    known = {name: value for name, value in data.dimensions.items() if name != "embedding_dim"}
    module, _, seconds = fitted_module(data, seed, lambda: ForwardBackward(**known, **SETTINGS))
    return module.cpu().eval(), seconds


def run(updates: int = UPDATES) -> dict[str, Any]:
    """Train, then act for every reward; one row each."""
    with tempfile.TemporaryDirectory() as folder:
        starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
        path = collected(Path(folder, "random"), starts, 1_000_000, None, num_envs=10_000, block_steps=5)
        module, seconds = trained(path, updates)
    rows = []
    for name, reward in REWARDS.items():
        rows.append({"reward": name, **evaluate(module.model, reward)})
        print(rows[-1], flush=True)
    return {
        "title": "Policies on the maze for any reward by a forward-backward representation",
        "updates": updates,
        "cpu_seconds": seconds,
        "rows": rows,
    }
