"""Occupancies at long horizons: plain transitions against transitions expanded in a learned one-step model.

The maze, with data and network of ``occupancy_maze``: the loop at discounts .9, .99 and .999, and the four policies
that go to a room, at .99. Expanded variants of the same comparison make fewer updates, so that they take about the
same time. In ``longer`` variants the one-step model gets 8000 updates in place of 4000. Seconds are CPU time of the
training of one thread, the one-step model included.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import DeterministicDynamics, Horizon
from flowmatch_rl.modules import Expansion, ObservedSteps, Segments
from flowmatch_rl.nets import DynamicsArchitecture, EmaSettings
from flowmatch_rl.objectives import TD2CFM, MonteCarloCFM
from flowmatch_rl.testbeds import CirculationReward, GoalReward, MazeLoopPolicy, MazeReachPolicy, PointMassMaze, Room
from flowmatch_rl.types import Policy, Reward

CONTACTS = DeterministicDynamics(DynamicsArchitecture(num_frequencies=4))
SEGMENTS: dict[str, Segments] = {
    "transitions": ObservedSteps(),
    "n = 32": Expansion(length=32, dynamics=CONTACTS),
    "n = 64": Expansion(length=64, dynamics=CONTACTS),
    "n = 128": Expansion(length=128, dynamics=CONTACTS, pool_batches=32, reuse=32),
    "n = 128, longer": Expansion(length=128, dynamics=CONTACTS, pool_batches=32, reuse=32, num_updates=8_000),
    "n = 256": Expansion(length=256, dynamics=CONTACTS, pool_batches=32, reuse=64),
    "n = 256, longer": Expansion(length=256, dynamics=CONTACTS, pool_batches=32, reuse=64, num_updates=8_000),
    "n = 512": Expansion(length=512, dynamics=CONTACTS, pool_batches=16, reuse=64),
    "Monte Carlo": ObservedSteps(),
}


@dataclass(frozen=True)
class Task:
    """A policy, the discount of its occupancy, and a reward that it is evaluated under."""

    policy: Policy
    discount: float
    reward: Reward


def _loop(discount: float) -> Task:
    return Task(MazeLoopPolicy(), discount, CirculationReward(scale=0.4))


def _reach(room: Room) -> Task:
    policy = MazeReachPolicy(room)
    return Task(policy, 0.99, GoalReward(("x", "y"), policy.goal, radius=0.05))


REACHING = {f"reach {room.replace('_', ' ')}, .99": _reach(room) for room in get_args(Room)}
TASKS = {f"loop, {discount:g}".replace("0.", "."): _loop(discount) for discount in (0.9, 0.99, 0.999)} | REACHING
RUNS = (
    *(("loop, .99", name, 1_000) for name in ("transitions", "n = 32", "n = 64", "n = 128")),
    *(("loop, .99", name, 8_000) for name in ("transitions", "n = 128", "n = 128, longer")),
    *((task, name, updates) for task in REACHING for name, updates in (("transitions", 1_500), ("n = 128", 1_000))),
    *(("loop, .9", name, updates) for name, updates in (("transitions", 1_500), ("n = 128", 1_000))),
    ("loop, .999", "transitions", 1_500),
    ("loop, .999", "n = 128", 1_000),
    ("loop, .999", "n = 512", 1_000),
    ("loop, .999", "Monte Carlo", 1_500),
)
"""Task, segments and number of updates of each variant."""


def run(runs: tuple[tuple[str, str, int], ...] = RUNS, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Train and test every variant with every seed; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task, name, updates in runs:
            for seed in seeds:
                rows.append(_row(Path(folder), task, name, updates, seed))
                print(rows[-1], flush=True)
    return {"title": "Occupancies of policies in the maze at long horizons, expanded transitions", "rows": rows}


def _row(folder: Path, task: str, name: str, updates: int, seed: int) -> dict[str, Any]:
    policy, discount, reward = TASKS[task].policy, TASKS[task].discount, TASKS[task].reward
    steps = round(8.0 / (1.0 - discount))
    rest = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=max(1000, steps))
    if name == "Monte Carlo":
        path = collected(folder / f"own_{steps}", rest, 1_000_000, policy, num_envs=100, block_steps=10_000)
    else:
        starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
        path = collected(folder / "random", starts, 1_000_000, None, num_envs=10_000, block_steps=5)
    data = OfflineData(
        path,
        256,
        num_updates=updates,
        epoch_updates=updates,
        environment=rest,
        test_states=64,
        eval_steps=max(1000, steps),
    )
    _, found = trained(
        data,
        seed=seed,
        policy=policy,
        objective=MonteCarloCFM() if name == "Monte Carlo" else TD2CFM(solver=SOLVER),
        path=LINEAR,
        network=NETWORK,
        horizon=Horizon(discount),
        segments=SEGMENTS[name],
        ema=EmaSettings(0.9),
        optimizer=OPTIMIZER,
        rewards={"reward": reward},
        tests=FutureTests(test_samples=512, value_samples=2048),
    )
    return {
        "task": task,
        "variant": name,
        "updates": updates,
        "seed": seed,
        "seconds": found["seconds"],
        "emd": found["test/wasserstein"],
        "emd_floor": found["test/wasserstein_floor"],
        "value": found["test/value/reward"],
        "real_value": found["test/value_real/reward"],
        "value_error": found["test/value_error/reward"],
        "error_after_64": found.get("test/dynamics_error/64", ""),
    }
