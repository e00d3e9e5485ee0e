"""Online learning: the comparisons of ``conf/comparison`` whose curves are kept under ``benchmarks/online``.

Runs go on where they were interrupted. Of each the configuration, the learning curve and the result are kept.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from flowmatch_rl.experiments.runs import read_study

COMPARISONS = ("pendulum", "control_suite", "paper_recipe", "estimators")
RUNS = Path("runs/comparisons")
RECORDS = Path(__file__).parent / "online"
KEPT = ("config.yaml", "figures/learning_curve.csv", "result.json")


def run() -> dict[str, Any]:
    """Train what is missing, keep the records, and return one row per comparison, task and method."""
    for name in COMPARISONS:
        command = [sys.executable, "-m", "flowmatch_rl", "compare", f"-c=conf/comparison/{name}.yaml"]
        subprocess.run([*command, f"--output={RUNS / name}", "--tracking=false"], check=True)
        record(name)
    return summary()


def record(name: str) -> None:
    """Copy what is kept of a comparison's runs, finished or not.

    Args:
        name: Its name.
    """
    for source in sorted((RUNS / name).rglob("*")):
        place = source.relative_to(RUNS / name)
        wanted = any(place.match(kept) for kept in KEPT) or place.parts == ("comparison.json",)
        if source.is_file() and wanted:
            target = RECORDS / name / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def summary() -> dict[str, Any]:
    """One row per comparison, task and method, from the records."""
    rows = []
    for name in COMPARISONS:
        if not (RECORDS / name).is_dir():
            continue
        study = read_study([RECORDS / name])
        for task in study.tasks:
            for method in study.methods:
                rows += [_row(name, task, method, study.of(task, method))] if study.of(task, method) else []
    return {"title": "Online learning on two CPU cores", "rows": rows}


def _row(comparison: str, task: str, method: str, runs: list[Any]) -> dict[str, Any]:
    scores = [run.score for run in runs if run.score is not None]
    curves = [run.curve for run in runs if run.curve is not None]
    best = [float(curve.returns.max()) for curve in curves]
    rates = [
        float((curve.steps[-1] - curve.steps[0]) / (curve.seconds[-1] - curve.seconds[0]))
        for curve in curves
        if len(curve.steps) > 1
    ]
    return {
        "comparison": comparison,
        "task": task,
        "method": method,
        "env_steps": max((int(curve.steps[-1]) for curve in curves), default=0),
        "runs_ended": f"{len(scores)} of {len(runs)}",
        "final_return": ", ".join(f"{score:.0f}" for score in scores) or "-",
        "best_evaluation": ", ".join(f"{value:.0f}" for value in best) or "-",
        "env_steps_per_s": max(rates, default=float("nan")),
    }


if __name__ == "__main__":
    for each in COMPARISONS:
        record(each)
    print(json.dumps(summary(), indent=2))
