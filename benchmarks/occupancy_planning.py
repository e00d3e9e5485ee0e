"""Planning on the maze with a model of the policies that go to a point and rest there.

One occupancy model is trained on random forces for all goals, at discount 0.95, without any reward. Then, for rewards
that none of the policies was made for, generalised policy improvement chooses another goal every few steps; beside it a
single policy is followed that has the highest value of its own, chosen once at each start, or once for all starts.
An action is held for four steps of 0.02 s. Returns are undiscounted sums over episodes of 120 decisions, means over
100 episodes from random starts at rest.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.occupancy_maze import NETWORK
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import OccupancyModule
from flowmatch_rl.nets import EmaSettings
from flowmatch_rl.objectives import TD2CFM
from flowmatch_rl.planning import best_single, improve
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler, Midpoint
from flowmatch_rl.testbeds import BoxReward, CirculationReward, MazeGoalPolicy, PointMassMaze, SpeedReward
from flowmatch_rl.types import Reward

UPDATES, DISCOUNT = 4_000, 0.95
EPISODES, STEPS, REPLAN_STEPS = 100, 120, 4
CANDIDATES, SAMPLES = 16, 16
MAZE, POLICY = PointMassMaze(action_repeat=4), MazeGoalPolicy()
REWARDS: dict[str, Reward] = {
    "run clockwise": CirculationReward(scale=0.4),
    "run counter-clockwise": CirculationReward(scale=0.4, clockwise=False),
    "be fast": SpeedReward(scale=0.4),
    "right of the wall": BoxReward(low=(0.2, -0.05), high=(0.3, 0.05)),
}


def follow(state: Tensor, choose: Any, reward: Reward) -> Tensor:
    """Returns of episodes (B,) in which ``choose(state, step)`` names the members (B, Z) that act."""
    total = torch.zeros(len(state))
    for step in range(STEPS):
        state, _ = MAZE.step(state, POLICY.act(state, choose(state, step)), torch.zeros(len(state), 4))
        total += reward.evaluate(state, MAZE.columns)
    return total


@torch.no_grad()
def compare(module: OccupancyModule, reward: Reward) -> dict[str, float]:
    """Mean returns with planning, of the best policy at each start, and of the best one for all starts."""
    generator = torch.Generator().manual_seed(5)
    starts = MAZE.start(torch.randn(EPISODES, 4, generator=generator))
    candidates = POLICY.embeddings(torch.rand(CANDIDATES, 2, generator=generator))

    def worth(states: Tensor) -> Tensor:
        return reward.evaluate(states, MAZE.columns)

    def plan(states: Tensor, samples: int) -> Tensor:
        noise = torch.randn(samples, 4, generator=generator)
        return candidates[improve(module.model.futures, POLICY.act, states, candidates, noise, worth, DISCOUNT).index]

    chosen = torch.empty(0)

    def replan(states: Tensor, step: int) -> Tensor:
        nonlocal chosen
        if step % REPLAN_STEPS == 0:
            chosen = plan(states, SAMPLES)
        return chosen

    own = plan(starts, 64)
    noise = torch.randn(64, 4, generator=generator)
    single = best_single(module.model.futures, POLICY.act, starts, candidates, noise, worth, DISCOUNT)
    everywhere = candidates[single.index].expand(EPISODES, -1)
    returns = [follow(starts, replan, reward), follow(starts, lambda *_: own, reward)]
    returns.append(follow(starts, lambda *_: everywhere, reward))
    planned, each, one = (float(value.mean()) for value in returns)
    error = float((returns[0] - returns[1]).std() / EPISODES**0.5)
    return {
        "with_planning": planned,
        "best_at_each_start": each,
        "best_for_all_starts": one,
        "improvement": planned / each - 1.0,
        "standard_error_of_difference": error,
    }


def run(updates: int = UPDATES) -> dict[str, Any]:
    """Train, then plan for every reward; one row each."""
    with tempfile.TemporaryDirectory() as folder:
        starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
        path = collected(Path(folder, "random"), starts, 1_000_000, None, num_envs=10_000, block_steps=5)
        data = OfflineData(
            path,
            batch_size=256,
            num_updates=updates,
            epoch_updates=updates,
            environment=ProcessEnvironment(MAZE, max_steps=1000),
            eval_steps=200,
            test_states=16,
        )
        module, found = trained(
            data,
            seed=0,
            policy=POLICY,
            objective=TD2CFM(solver=Midpoint(num_steps=3)),
            network=NETWORK,
            horizon=Horizon(DISCOUNT),
            ema=EmaSettings(0.9),
            optimizer=OPTIMIZER,
            sampler=OdeSampler(Euler(num_steps=5)),
            tests=FutureTests(test_samples=128, value_samples=128, likelihood_samples=0, num_actions=0),
        )
    rows = []
    for name, reward in REWARDS.items():
        rows.append({"reward": name, **compare(module, reward)})
        print(rows[-1], flush=True)
    mean = sum(row["with_planning"] for row in rows) / sum(row["best_at_each_start"] for row in rows) - 1.0
    return {
        "title": "Planning on the maze for rewards that no policy was made for",
        "updates": updates,
        "emd": found["test/wasserstein"],
        "emd_floor": found["test/wasserstein_floor"],
        "improvement_of_the_mean": mean,
        "rows": rows,
    }
