"""Policies from data of OGBench's oracles: the comparisons ``offline`` and ``offline_cube``, and their records.

The data sets, 300,000 transitions each, are collected first. Runs go on where they were interrupted. Success and
returns are of 50 episodes per seed at the end of a run, ``divergence`` is the energy distance of the actions taken to
those of the behaviour flow, where a method has one.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparisons import last_step, rate, recorded, train
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.experiments.runs import Run

COMPARISONS = ("offline", "offline_cube")
RECORDS = Path(__file__).parent
DATA = ("pointmaze_medium", "cube_single")
TRANSITIONS = 300_000


def run() -> dict[str, Any]:
    """Train what is missing, keep the records, and return one row per task and method."""
    collect()
    for name in COMPARISONS:
        train(name, RECORDS)
    return summary()


def collect() -> None:
    """Collect the data sets that are not there; an interrupted collection goes on.

    Raises:
        SystemExit: If there is one of another size.
    """
    for name in DATA:
        path = Path("data") / name
        if (path / "dataset.json").exists():
            if (rows := len(TransitionStore.open(str(path)))) != TRANSITIONS:
                raise SystemExit(f"{path} must have {TRANSITIONS} rows, got {rows}: move it away")
            continue
        command = [sys.executable, "-m", "flowmatch_rl", "collect", f"-c=conf/collect/{name}.yaml"]
        subprocess.run([*command, f"--num_transitions={TRANSITIONS}", f"--output={path}"], check=True)


def summary() -> dict[str, Any]:
    """One row per task and method, from the records."""
    rows = [_row(task, method, runs) for _, task, method, runs in recorded(COMPARISONS, RECORDS)]
    return {"title": "Policies from data of OGBench's oracles", "transitions": TRANSITIONS, "rows": rows}


def _row(task: str, method: str, runs: Sequence[Run]) -> dict[str, Any]:
    def of(name: str, form: str) -> str:
        return ", ".join(form.format(run.metrics[name]) for run in runs if run.metrics and name in run.metrics) or "-"

    return {
        "task": task,
        "method": method,
        "updates": last_step(runs),
        "success": of("test/success_rate", "{:.0%}"),
        "return": of("test/return_mean", "{:.0f}"),
        "predicted": of("test/predicted_return", "{:.1f}"),
        "followed": of("test/discounted_return", "{:.1f}"),
        "divergence": of("test/behavior_energy_distance", "{:.3f}"),
        "updates_per_s": rate(runs),
    }
