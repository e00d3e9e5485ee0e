"""An occupancy of a short horizon that answers for a longer one: future states of discount .9 chained to .99.

The loop of the maze with data and network of ``occupancy_maze``. A chain needs no training; each of its future states
costs ten of the short horizon on average. Beside it the models of ``occupancy_horizon`` trained at .99. Seconds are
CPU time of one thread.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.occupancy_horizon import SEGMENTS
from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.batches import read_rollouts
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.evaluation.futures import compare_values, modelled_futures, real_futures
from flowmatch_rl.metrics import wasserstein_distance
from flowmatch_rl.models import Horizon
from flowmatch_rl.nets import EmaSettings
from flowmatch_rl.objectives import TD2CFM
from flowmatch_rl.testbeds import CirculationReward, MazeLoopPolicy, PointMassMaze

DISCOUNT, SAMPLES = 0.99, 512
VARIANTS = (("transitions", 0.99), ("n = 64", 0.99), ("transitions", 0.9), ("n = 64", 0.9))
"""Segments, and the discount that a model is trained at."""


def run(
    variants: tuple[tuple[str, float], ...] = VARIANTS, updates: int = 1_000, seeds: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Any]:
    """Train every variant with every seed and compare its future states at .99 with trajectories; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, trained_at in variants:
            for seed in seeds:
                rows.append(_row(Path(folder), name, trained_at, updates, seed))
                print(rows[-1], flush=True)
    return {
        "title": f"Future states of discount {DISCOUNT:g} by models of it, and chained of a shorter one",
        "rows": rows,
    }


def _row(folder: Path, name: str, trained_at: float, updates: int, seed: int) -> dict[str, Any]:
    starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
    random = collected(folder / "random", starts, 1_000_000, None, num_envs=10_000, block_steps=5)
    rest = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=1000)
    data = OfflineData(random, 256, num_updates=updates, epoch_updates=updates, environment=rest, test_states=64)
    module, found = trained(
        data,
        seed=seed,
        policy=MazeLoopPolicy(),
        objective=TD2CFM(solver=SOLVER),
        path=LINEAR,
        network=NETWORK,
        horizon=Horizon(trained_at),
        segments=SEGMENTS[name],
        ema=EmaSettings(0.9),
        optimizer=OPTIMIZER,
        tests=FutureTests(test_samples=2, value_samples=2, likelihood_samples=0, num_actions=0),
    )
    model, generator = module.model, torch.Generator().manual_seed(1)
    rollouts = read_rollouts(next(iter(data.test_dataloader())))
    began = time.thread_time()
    if trained_at < DISCOUNT:
        source = (rollouts.observation, rollouts.action, rollouts.embedding)
        rows = [part[:, None].expand(-1, SAMPLES, -1) for part in source]
        made = model.sample_beyond(DISCOUNT, *rows, endless=True, generator=generator)
    else:
        made = modelled_futures(model, rollouts, DISCOUNT, SAMPLES, generator)
    seconds = time.thread_time() - began
    real = real_futures(model, rollouts, DISCOUNT, SAMPLES, generator)
    distances = [wasserstein_distance(some, other) for some, other in zip(made, real, strict=True)]
    (value,) = compare_values(model, rollouts, {"loop": CirculationReward(scale=0.4)}, made, DISCOUNT)
    metrics = value.metrics()
    return {
        "variant": name,
        "trained_at": trained_at,
        "seed": seed,
        "seconds": found["seconds"],
        "sampling_s": seconds,
        "emd": float(torch.stack(distances).mean()),
        "value": float(metrics["value/loop"]),
        "real_value": float(metrics["value_real/loop"]),
        "value_error": float(metrics["value_error/loop"]),
    }
