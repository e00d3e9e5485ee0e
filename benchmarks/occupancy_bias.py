"""Error of an occupancy against its horizon 1 / (1 - discount), for backups of one step and of many.

The loop of the maze, data and network of ``occupancy_maze``, 1000 updates of every variant at every discount. Rows are
kept in ``runs/occupancy_bias``, where an interrupted run resumes; remove the folder to measure afresh. Seconds are CPU
time of the training of one thread, the one-step model included.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.models import DeterministicDynamics, Horizon
from flowmatch_rl.modules import Expansion, ObservedSteps
from flowmatch_rl.nets import DynamicsArchitecture, EmaSettings
from flowmatch_rl.objectives import TD2CFM, MonteCarloCFM, time_constants
from flowmatch_rl.testbeds import CirculationReward, MazeLoopPolicy, PointMassMaze

RUNS = Path("runs/occupancy_bias")
DISCOUNTS = (0.8, 0.9, 0.95, 0.99, 0.995)
UPDATES, EMA_DECAY = 1_000, 0.9
EVALUATED_STEPS = 2_000
"""Steps of the trajectories that futures are compared with, ten of the longest horizons."""

EXPANSION = Expansion(length=64, gate=0.5, dynamics=DeterministicDynamics(DynamicsArchitecture(num_frequencies=4)))
"""The settings of ``conf/occupancy/presets/expansion.yaml``."""

VARIANTS: dict[str, dict[str, Any]] = {
    "transitions": {"objective": TD2CFM(solver=SOLVER)},
    "n = 64": {"objective": TD2CFM(solver=SOLVER), "segments": EXPANSION},
    "Monte Carlo": {"objective": MonteCarloCFM()},
    "many horizons": {"objective": TD2CFM(solver=SOLVER), "min_discount": 0.8, "consistency": 0.25},
}
RUNS_OF = [
    (name, discount, seed)
    for seed, names in (
        (0, ("transitions", "n = 64", "Monte Carlo")),
        (1, ("transitions", "n = 64")),
        (0, ("many horizons",)),
        (2, ("transitions", "n = 64")),
    )
    for name in names
    for discount in DISCOUNTS
    if discount > VARIANTS[name].get("min_discount", 0.0)
]
"""Variant, discount and seed of each run: three seeds of the two that are compared."""


def run() -> dict[str, Any]:
    """Train and test what is not measured yet; one row for each variant, discount and seed."""
    RUNS.mkdir(parents=True, exist_ok=True)
    store = RUNS / "rows.jsonl"
    rows = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    measured = {(row["variant"], row["discount"], row["seed"]) for row in rows}
    for name, discount, seed in RUNS_OF:
        if (name, discount, seed) not in measured:
            rows.append(_row(name, discount, seed))
            print(rows[-1], flush=True)
            with store.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    order = list(VARIANTS)
    rows.sort(key=lambda row: (order.index(row["variant"]), row["discount"], row["seed"]))
    return {"title": "Error of the maze's occupancy against the horizon", "updates": UPDATES, "rows": rows}


def _row(name: str, discount: float, seed: int) -> dict[str, Any]:
    """What one run finds."""
    variant = dict(VARIANTS[name])
    objective, segments = variant.pop("objective"), variant.pop("segments", ObservedSteps())
    _, found = trained(
        _data(objective.bootstraps),
        seed=seed,
        policy=MazeLoopPolicy(),
        objective=objective,
        path=LINEAR,
        network=NETWORK,
        horizon=Horizon(discount, **variant),
        segments=segments,
        ema=EmaSettings(EMA_DECAY),
        optimizer=OPTIMIZER,
        rewards={"loop": CirculationReward(scale=0.4)},
        tests=FutureTests(test_samples=512, value_samples=1024, likelihood_samples=0),
    )
    clock = time_constants(EMA_DECAY, discount, UPDATES, segments.longest) if objective.bootstraps else None
    return {
        "variant": name,
        "discount": discount,
        "horizon": round(1.0 / (1.0 - discount)),
        "seed": seed,
        "seconds": found["seconds"],
        "time_constants": clock,
        "emd": found["test/wasserstein"],
        "emd_floor": found["test/wasserstein_floor"],
        "value": found["test/value/loop"],
        "real_value": found["test/value_real/loop"],
        "value_error": found["test/value_error/loop"],
        "relative_error": found["test/value_error/loop"] ** 0.5 * (1.0 - discount),
    }


def _data(off_policy: bool) -> OfflineData:
    """Transitions of random forces, or trajectories of the policy itself."""
    rest = ProcessEnvironment(PointMassMaze(action_repeat=4), max_steps=1_000)
    if off_policy:
        starts = ProcessEnvironment(PointMassMaze(start_speed=0.4, action_repeat=4), max_steps=5)
        path = collected(RUNS / "random", starts, 1_000_000, None, num_envs=10_000, block_steps=5)
    else:
        path = collected(RUNS / "loops", rest, 1_000_000, MazeLoopPolicy(), num_envs=1_000)
    return OfflineData(
        path,
        batch_size=256,
        num_updates=UPDATES,
        epoch_updates=UPDATES,
        environment=rest,
        test_states=64,
        eval_steps=EVALUATED_STEPS,
        verify=False,
    )
