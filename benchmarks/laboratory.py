"""Bandits with a known value: how close the policies of every method come to the exact Boltzmann law.

Runs ``flowmatch-rl laboratory -c conf/bandit/laboratory.yaml`` (an hour and a half on one core; it goes on where it was
interrupted) and keeps its table and figures in ``benchmarks/laboratory``.
"""

import csv
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

OUTPUT = Path("runs/laboratory")
RECORDS = Path(__file__).parent / "laboratory"
KEPT = ("results.csv", "table.md", "samples.png", "estimators.png")
METRICS = ("energy_distance", "energy_distance/50_steps", "smallest_mode_share", "saturated_entries")


def run() -> dict[str, Any]:
    """Train what is missing, keep the results, and return one row per bandit and method."""
    command = [sys.executable, "-m", "flowmatch_rl", "laboratory", "-c=conf/bandit/laboratory.yaml"]
    subprocess.run([*command, f"--output={OUTPUT}"], check=True)
    RECORDS.mkdir(exist_ok=True)
    for name in KEPT:
        shutil.copyfile(OUTPUT / name, RECORDS / name)
    with (RECORDS / "results.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    return {"title": "Methods on bandits with a known value", "rows": rows(cells)}


def rows(cells: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Means over seeds, one row per bandit and method."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for cell in cells:
        groups[cell["bandit"], cell["method"]].append(cell)
    return [
        {"bandit": bandit, "method": method, "seeds": len(group)}
        | {name: fmean(float(cell[name] or "nan") for cell in group) for name in METRICS}
        for (bandit, method), group in groups.items()
    ]
