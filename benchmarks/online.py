"""Online learning: the comparisons of ``conf/comparison`` whose curves are kept under ``benchmarks/online``.

Runs go on where they were interrupted. Of each the configuration, the learning curve and the result are kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.comparisons import last_step, rate, recorded, train
from flowmatch_rl.experiments.runs import RETURN, Run
from flowmatch_rl.metrics import percentile_interval, resample_runs

COMPARISONS = (
    "pendulum",
    "control_suite",
    "lean",
    "lean_and_sac",
    "paper_recipe",
    "paper_estimator",
    "presets",
    "estimators",
    "ablations",
)
RECORDS = Path(__file__).parent / "online"
RESAMPLES, LEVEL = 2000, 0.8


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
    curves = [run.curve for run in runs if run.curve is not None]
    return {
        "comparison": comparison,
        "task": task,
        "method": method,
        "env_steps": last_step(runs),
        "runs_ended": f"{len(scores)} of {len(runs)}",
        "final_return": ", ".join(f"{score:.0f}" for score in scores) or "-",
        f"{LEVEL:.0%}_interval_of_its_mean": _interval(scores),
        "best_evaluation": ", ".join(f"{float(curve.returns.max()):.0f}" for curve in curves) or "-",
        "return_over_training": ", ".join(f"{curve.mean_return:.0f}" for curve in curves) or "-",
        "env_steps_per_s": rate(runs),
    }


def _interval(scores: Sequence[float]) -> str:
    """Bootstrap interval of the mean of two scores or more."""
    if len(scores) < 2:
        return "-"
    uniform = torch.rand(RESAMPLES, len(scores), generator=torch.Generator().manual_seed(0))
    means = resample_runs([torch.tensor(scores)], uniform)[0].mean(-1)
    low, high = percentile_interval(means, LEVEL).tolist()
    return f"{low:.0f} to {high:.0f}"
