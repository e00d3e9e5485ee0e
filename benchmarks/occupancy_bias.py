"""Error of an occupancy against its horizon 1 / (1 - discount), for backups of one step and of many.

The loop of the maze, data and network of ``occupancy_maze``, 1000 updates of every variant at every discount. Rows are
kept in ``runs/occupancy_bias``, where an interrupted run resumes; remove the folder to measure afresh. Seconds are CPU
time of the training of one thread, the one-step model included. Draws ``docs/occupancy_bias.png``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bias_chain
from benchmarks.occupancy_horizon import SEGMENTS
from benchmarks.occupancy_maze import LINEAR, NETWORK, SOLVER
from benchmarks.occupancy_runs import OPTIMIZER, collected, trained
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureTests
from flowmatch_rl.figures.style import BLUE, GREEN, GREY, RED, new_figure, save_figure, tidy
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import ObservedSteps
from flowmatch_rl.nets import EmaSettings
from flowmatch_rl.objectives import TD2CFM, MonteCarloCFM, time_constants
from flowmatch_rl.testbeds import CirculationReward, MazeLoopPolicy, PointMassMaze, accumulated_bias

RUNS, DOCS = Path("runs/occupancy_bias"), Path(__file__).parents[1] / "docs"
DISCOUNTS = (0.8, 0.9, 0.95, 0.99, 0.995)
UPDATES, EMA_DECAY = 1_000, 0.9
EVALUATED_STEPS = 2_000
"""Steps of the trajectories that futures are compared with, ten of the longest horizons."""

VARIANTS: dict[str, dict[str, Any]] = {
    "transitions": {"objective": TD2CFM(solver=SOLVER)},
    "n = 128": {"objective": TD2CFM(solver=SOLVER), "segments": SEGMENTS["n = 128"]},
    "Monte Carlo": {"objective": MonteCarloCFM()},
    "many horizons": {"objective": TD2CFM(solver=SOLVER), "min_discount": 0.8, "consistency": 0.25},
}
RUNS_OF = [
    (name, discount, seed)
    for seed, names in (
        (0, ("transitions", "n = 128", "Monte Carlo")),
        (1, ("transitions", "n = 128")),
        (0, ("many horizons",)),
        (2, ("transitions", "n = 128")),
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
    draw(rows)
    return {"title": "Error of the maze's occupancy against the horizon", "updates": UPDATES, "rows": rows}


def draw(rows: list[dict[str, Any]]) -> None:
    """What a table adds up, beside distances and errors of values of the flow, by the horizon."""
    figure = new_figure(11.4, 3.6, "")
    table, distance, value = figure.subplots(1, 3)
    for row in bias_chain.run()["rows"]:
        if row["quantity"] == "error of the value":
            for n, color in ((1, BLUE), (64, RED)):
                table.plot(row["horizon"], row[f"n = {n}"], "o", color=color, markersize=4)
    horizons = np.geomspace(4.0, 250.0, 100)
    for n, color in ((1, BLUE), (64, RED)):
        table.plot(horizons, [accumulated_bias(1.0, 1.0 - 1.0 / h, n) for h in horizons], color=color, label=f"n = {n}")
    styles = {
        "transitions": (BLUE, "n = 1"),
        "many horizons": (GREEN, "n = 1, many horizons"),
        "n = 128": (RED, "n = 128, in a learned model"),
        "Monte Carlo": (GREY, "Monte Carlo, on policy"),
    }
    for name in dict.fromkeys(row["variant"] for row in rows):
        color, label = styles[name]
        found = [row for row in rows if row["variant"] == name]
        lengths = sorted({row["horizon"] for row in found})
        for axes, key in ((distance, "emd"), (value, "relative_error")):
            means = [np.mean([row[key] for row in found if row["horizon"] == length]) for length in lengths]
            axes.plot([row["horizon"] for row in found], [row[key] for row in found], "o", color=color, markersize=3)
            axes.plot(lengths, means, color=color, label=label)
    floors = sorted({row["horizon"]: row["emd_floor"] for row in rows}.items())
    distance.plot(*zip(*floors, strict=True), "--", color="black", linewidth=1, label="two real samples")
    table.set(title="table: error of the value", yscale="log")
    distance.set(title="flow: distance to real futures", ylim=(0.0, None))
    value.set(title="flow: error of the value", ylim=(0.0, None))
    for axes, label in (
        (table, "error / error of one backup"),
        (distance, "Wasserstein-1"),
        (value, "root mean square error / mean value"),
    ):
        axes.set_xscale("log")
        axes.set_xticks([horizon for horizon, _ in floors], [str(horizon) for horizon, _ in floors])
        axes.minorticks_off()
        axes.legend(fontsize=7, frameon=False)
        tidy(axes, "horizon 1 / (1 - discount)", label)
    save_figure(figure, DOCS / "occupancy_bias.png")


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
        "relative_error": found["test/value_error/loop"] ** 0.5 / found["test/value_real/loop"],
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
