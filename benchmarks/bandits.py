"""Bandits with a known value: how close the policies of every method come to the exact Boltzmann distribution.

Runs ``flowmatch-rl compare -c conf/comparison/bandits.yaml`` (under two hours on one core; it resumes where it was
interrupted) and ``flowmatch-rl estimators -c conf/bandit/estimators.yaml``, and keeps their tables and figures in
``benchmarks/bandits``.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

RUNS, STUDY = Path("runs/comparisons/bandits"), Path("runs/estimators")
RECORDS = Path(__file__).parent / "bandits"
KEPT = (RUNS / "results.csv", RUNS / "samples.png", STUDY / "estimators.csv", STUDY / "estimators.png")
METRICS = ["energy_distance", "energy_distance/50_steps", "smallest_mode_share", "saturated_entries"]


def run() -> dict[str, Any]:
    """Train what is missing, keep the results, and return one row per bandit and method."""
    command = [sys.executable, "-m", "flowmatch_rl"]
    subprocess.run([*command, "compare", "-c=conf/comparison/bandits.yaml", f"--output={RUNS}"], check=True)
    subprocess.run([*command, "estimators", "-c=conf/bandit/estimators.yaml", f"--output={STUDY}"], check=True)
    RECORDS.mkdir(exist_ok=True)
    for path in KEPT:
        shutil.copyfile(path, RECORDS / path.name)
    return {"title": "Methods on bandits with a known value", "rows": rows(pd.read_csv(RECORDS / "results.csv"))}


def rows(results: pd.DataFrame) -> list[dict[str, Any]]:
    """Means over seeds, one row per bandit and method."""
    groups = results.groupby(["task", "method"], sort=False)
    means = groups[METRICS].mean().reset_index(names=["bandit", "method"])
    means.insert(2, "seeds", groups.size().to_numpy())
    return means.to_dict("records")
