"""Online learning: the comparisons of ``conf/comparison`` whose curves are kept under ``benchmarks/online``.

Runs go on where they were interrupted. Of each the configuration, the learning curve and the result are kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparisons import last_step, rate, recorded, train
from flowmatch_rl.experiments.runs import RETURN, Run

COMPARISONS = ("pendulum", "control_suite", "lean", "lean_and_sac", "paper_recipe", "estimators")
RECORDS = Path(__file__).parent / "online"


def run() -> dict[str, Any]:
    """Train what is missing, keep the records, and return one row per comparison, task and method."""
    for name in COMPARISONS:
        train(name, RECORDS)
    return summary()


def summary() -> dict[str, Any]:
    """One row per comparison, task and method, from the records."""
    rows = [_row(*each) for each in recorded(COMPARISONS, RECORDS)]
    return {"title": "Online learning on two CPU cores", "rows": rows}


def _row(comparison: str, task: str, method: str, runs: Sequence[Run]) -> dict[str, Any]:
    scores = [score for run in runs if (score := run.measured(RETURN)) is not None]
    best = [float(run.curve.returns.max()) for run in runs if run.curve is not None]
    return {
        "comparison": comparison,
        "task": task,
        "method": method,
        "env_steps": last_step(runs),
        "runs_ended": f"{len(scores)} of {len(runs)}",
        "final_return": ", ".join(f"{score:.0f}" for score in scores) or "-",
        "best_evaluation": ", ".join(f"{value:.0f}" for value in best) or "-",
        "env_steps_per_s": rate(runs),
    }
