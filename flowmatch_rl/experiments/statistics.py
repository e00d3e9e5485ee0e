"""The numbers of a report: mean curves, final returns, and what is known over all tasks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from flowmatch_rl.experiments.runs import RETURN, SUCCESS, Run, RunCurve, Study
from flowmatch_rl.figures import BanditPanels
from flowmatch_rl.figures.comparison import Aggregate, MethodCurves, TaskCurves
from flowmatch_rl.metrics import (
    MeanCurve,
    interquartile_mean,
    mean_curve,
    percentile_interval,
    probability_of_improvement,
    resample_runs,
)

_RESAMPLES = 2000
_GRID = 100
_FEW_RUNS = 5
"""Fewer runs than this per method and task, and bootstrap intervals are markedly too narrow."""


SCORES = {RETURN: "return", SUCCESS: "success rate"}
"""Scores of runs, and what they are called."""

_AGGREGATES = {frozenset((RETURN,)): "normalised return", frozenset((SUCCESS,)): "success rate"}
"""What scores are called over tasks that all have one metric."""

BANDIT_METRICS = {
    "energy_distance": "energy distance",
    "energy_distance/50_steps": "with 50 steps",
    "sliced_wasserstein": "sliced Wasserstein",
    "mmd": "MMD",
    "smallest_mode_share": "smallest mode",
    "largest_mode_share": "largest mode",
    "saturated": "saturated",
}
"""Metrics in the table of a bandit, and what they are called there."""

EXACT = "two exact samples"
"""First row of that table: how far two exact samples are apart."""

_DENSITY_POINTS = 121
"""Points per side of the density of a bandit."""


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows.

    Attributes:
        tasks: Curves and final returns of each task with returns.
        tables: Table of each of them, scores being those of the final tests of runs that ended: a row for each
            ``method``, with how many runs are ``planned`` and have ``ended``, ``mean`` and ``std`` over runs (with
            Bessel's correction), bounds ``low`` and ``high`` of the bootstrap interval of the mean, means of ``RETURN``
            and ``SUCCESS`` where all runs measured it, and
            ``steps_per_s``, steps per second of training, which are those of the task's curves. NaN where runs are
            missing. ``mean_return`` is the mean over these runs of the area under the curve by steps, divided by them.
        aggregate: What is known over all tasks with returns.
        bandits: Tasks that are bandits: density and samples, of the first run of each method.
        bandit_tables: Of each of them, by method, ``mean`` and ``std`` over runs of what their tests measured, and
            how many ``runs`` have ``ended`` and are ``planned``: columns of two levels.
        remarks: What a reader must know: what is missing, and why.
        level: Level of all intervals.
    """

    tasks: tuple[TaskCurves, ...]
    tables: tuple[pd.DataFrame, ...]
    aggregate: Aggregate
    bandits: dict[str, BanditPanels]
    bandit_tables: dict[str, pd.DataFrame]
    remarks: tuple[str, ...]
    level: float


def summarize(study: Study, level: float = 0.95) -> Summary:
    """Work out the numbers of a report.

    Args:
        study: The runs.
        level: Level of the intervals, in (0, 1).
    """
    returns, bandits = study.split()
    methods = returns.methods
    tasks = tuple(
        TaskCurves(
            task,
            returns.steps(task),
            SCORES[returns.scores[task].metric],
            [_method_on(returns, task, method, level) for method in methods],
            level,
        )
        for task in returns.tasks
    )
    tables = tuple(pd.DataFrame([_row(returns, task, method) for method in task.methods]) for task in tasks)
    scores = {name: [task.methods[place].scores for task in tasks] for place, name in enumerate(methods)}
    unscaled = [task for task in returns.tasks if study.scores[task].range is None]
    scaled = None if unscaled or not tasks else _scaled(returns, scores)
    aggregate = Aggregate(
        methods,
        _AGGREGATES.get(frozenset(returns.scores[task].metric for task in returns.tasks), "score"),
        None if scaled is None else _means(scaled, interquartile_mean, level),
        None if scaled is None else _means(scaled, _mean_of_tasks, level),
        _areas(returns, scaled is not None, level),
        _improvement(returns, scores, level) if len(methods) > 1 else None,
    )
    return Summary(
        tasks,
        tables,
        aggregate,
        {task: panels for task in bandits.tasks if (panels := _panels(bandits, task)) is not None},
        {task: _bandit_table(bandits, task) for task in bandits.tasks},
        tuple(_remarks(study, tasks, tables, unscaled)),
        level,
    )


def _panels(study: Study, task: str) -> BanditPanels | None:
    """Density of a bandit and samples of its policies; None for a single action."""
    drawn = {method: next((run for run in study.of(task, method) if run.on_bandit), None) for method in study.methods}
    bandit, temperature = next(run for run in study.runs if run.task == task and run.on_bandit).bandit()
    if bandit.action_dim < 2:
        return None
    line = torch.linspace(-1.0, 1.0, _DENSITY_POINTS, dtype=torch.float64)
    points = torch.cartesian_prod(line, line).flip(-1)  # rows by the second action
    density = bandit.plane_log_prob(points, temperature).exp().reshape(_DENSITY_POINTS, _DENSITY_POINTS)
    samples = {method: None if run is None else run.actions()[:, :2].numpy() for method, run in drawn.items()}
    number = max(len(points) for points in samples.values() if points is not None)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(number, bandit.action_dim, generator=generator, dtype=torch.float64)
    return BanditPanels(
        density=density.numpy(),
        exact=bandit.sample(uniform, temperature)[:, :2].numpy(),
        samples=samples,
        distance={
            method: run.metrics["test/energy_distance"]
            for method, run in drawn.items()
            if run is not None and run.metrics is not None
        },
        action_dim=bandit.action_dim,
    )


def _bandit_table(study: Study, task: str) -> pd.DataFrame:
    ended = {
        method: [run.metrics for run in study.of(task, method) if run.metrics is not None]
        for name, method in study.planned
        if name == task
    }
    rows: dict[str, dict[tuple[str, str], Any]] = {}
    if first := next((metrics for each in ended.values() for metrics in each), None):  # the same samples for all
        rows[EXACT] = {(key, "mean"): first.get(f"test/exact/{key}", math.nan) for key in BANDIT_METRICS}
    for method, metrics in ended.items():
        row: dict[tuple[str, str], Any] = {("runs", "ended"): len(metrics)}
        row["runs", "planned"] = study.planned[task, method]
        for key in BANDIT_METRICS:
            values = pd.Series([each.get(f"test/{key}", math.nan) for each in metrics], dtype=float)
            row |= {(key, "mean"): values.mean(), (key, "std"): values.std()}
        rows[method] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.set_axis(pd.MultiIndex.from_tuples(table.columns), axis="columns")


def _method_on(study: Study, task: str, method: str, level: float) -> MethodCurves:
    runs = study.of(task, method)
    measured = [run.measured(study.scores[task].metric) for run in runs]
    scores = torch.tensor([value for value in measured if value is not None], dtype=torch.float64)
    curves = [run.curve for run in runs if run.curve is not None]
    by_steps = _curve_by_steps(curves, level) if len(study.steps(task)) == 1 else None
    by_seconds = _curve_by_seconds(curves, level)
    return MethodCurves(method, by_steps, by_seconds, scores, _interval([scores], _mean_of_tasks, level))


def _curve_by_steps(curves: Sequence[RunCurve], level: float) -> MeanCurve | None:
    if not (points := [(curve.steps, curve.returns) for curve in curves]):
        return None
    return mean_curve(points, torch.cat([x for x, _ in points]).unique(), _uniform(len(points)), level)


def _curve_by_seconds(curves: Sequence[RunCurve], level: float) -> MeanCurve | None:
    points = []
    for curve in curves:
        known = ~curve.seconds.isnan()
        if bool(known.any()):
            points.append((curve.seconds[known], curve.returns[known]))
    if not points:
        return None
    # From where all runs have been evaluated once. The ends of the runs are on the grid, so that the curve is whole
    # exactly as far as all of them go.
    begin, ends = max(float(x[0]) for x, _ in points), torch.stack([x[-1] for x, _ in points])
    grid = torch.cat([torch.linspace(begin, float(ends.max()), _GRID, dtype=torch.float64), ends]).unique()
    grid = grid[grid >= begin]
    return mean_curve(points, grid, _uniform(len(points)), level)


def _row(study: Study, task: TaskCurves, method: MethodCurves) -> dict[str, Any]:
    scores = method.scores
    runs = study.of(task.name, method.name)
    curves = [run.curve for run in runs if run.curve is not None and len(task.steps) == 1]
    speeds = [float(curve.steps[-1] / curve.seconds[-1]) for curve in curves if float(curve.seconds[-1]) > 0.0]
    low, high = _bounds(method.interval)
    return {
        "method": method.name,
        "planned": study.planned.get((task.name, method.name), 0),
        "ended": len(scores),
        "mean": float(scores.mean()) if len(scores) else math.nan,
        "std": float(scores.std()) if len(scores) > 1 else math.nan,
        "low": low,
        "high": high,
        "mean_return": float(_curve_means(study, task.name, method.name).mean()),
        "steps_per_s": sum(speeds) / len(speeds) if speeds else math.nan,
        **{metric: _mean_of([run for run in runs if run.metrics is not None], metric) for metric in SCORES},
    }


def _mean_of(runs: Sequence[Run], metric: str) -> float:
    """Mean of a metric over runs that ended; NaN where one did not measure it."""
    values = [math.nan if (value := run.measured(metric)) is None else value for run in runs]
    return sum(values) / len(values) if values else math.nan


def _scaled(study: Study, scores: dict[str, list[Tensor]]) -> list[list[Tensor]]:
    """Scores brought to the range from 0 to 1, by method and task."""
    ranges = [study.scores[task].range or (math.nan, math.nan) for task in study.tasks]
    return [
        [(raw - low) / (high - low) for raw, (low, high) in zip(scores[name], ranges, strict=True)]
        for name in study.methods
    ]


def _curve_means(study: Study, task: str, method: str) -> Tensor:
    """Mean returns over the training of runs that ended, shape (N,); empty where runs count different steps."""
    curves = [run.curve for run in study.of(task, method) if run.metrics is not None and run.curve is not None]
    values = [curve.mean_return for curve in curves] if len(study.steps(task)) == 1 else []
    return torch.tensor(values, dtype=torch.float64)


def _areas(study: Study, is_scaled: bool, level: float) -> Tensor | None:
    """Interquartile means of the returns over training, with bounds; None where scores are others, or have no scale."""
    if not is_scaled or any(study.scores[task].metric != RETURN for task in study.tasks):
        return None
    means = {name: [_curve_means(study, task, name) for task in study.tasks] for name in study.methods}
    return _means(_scaled(study, means), interquartile_mean, level)


def _means(
    scaled: Sequence[Sequence[Tensor]], mean: Callable[[Sequence[Tensor]], Tensor], level: float
) -> Tensor | None:
    """Means over tasks and runs with bounds, shape (M, 3); None if no method has a run on every task."""
    rows = [
        [math.nan] * 3
        if any(len(task) == 0 for task in tasks)
        else [float(mean(tasks)), *_bounds(_interval(tasks, mean, level))]
        for tasks in scaled
    ]
    means = torch.tensor(rows, dtype=torch.float64)
    return None if bool(means[:, 0].isnan().all()) else means


def _improvement(study: Study, scores: dict[str, list[Tensor]], level: float) -> Tensor | None:
    """Probabilities of improvement with bounds, shape (M, M, 3); None if no two methods share a finished task."""
    size, tasks = len(study.methods), len(study.tasks)
    found = torch.full((size, size, 3), torch.nan, dtype=torch.float64)
    for row, name in enumerate(study.methods):
        for column, other in enumerate(study.methods):
            both = scores[name] + scores[other]
            if row == column or any(len(task) == 0 for task in both):
                continue

            def chance(resampled: Sequence[Tensor]) -> Tensor:
                return probability_of_improvement(resampled[:tasks], resampled[tasks:])

            found[row, column] = torch.tensor([float(chance(both)), *_bounds(_interval(both, chance, level))])
    return None if bool(found[..., 0].isnan().all()) else found


def _interval(scores: Sequence[Tensor], statistic: Callable[[Sequence[Tensor]], Tensor], level: float) -> Tensor | None:
    """Stratified bootstrap interval of a statistic, shape (2,); None if no task has two runs, or one has none."""
    counts = [len(task) for task in scores]
    if max(counts) < 2 or min(counts) == 0:
        return None
    return percentile_interval(statistic(resample_runs(scores, _uniform(sum(counts)))), level)


def _mean_of_tasks(scores: Sequence[Tensor]) -> Tensor:
    """Mean over tasks of the means over runs."""
    return torch.stack([task.mean(-1) for task in scores]).mean(0)


def _bounds(interval: Tensor | None) -> list[float]:
    return [math.nan, math.nan] if interval is None else interval.tolist()


def _uniform(number: int) -> Tensor:
    """The same random numbers for every statistic of as many runs, so that a report repeats itself."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand((_RESAMPLES, number), generator=generator, dtype=torch.float64)


def _remarks(
    study: Study, tasks: Sequence[TaskCurves], tables: Sequence[pd.DataFrame], unscaled: Sequence[str]
) -> list[str]:
    remarks = []
    planned, ended = sum(study.planned.values()), study.num_ended
    if ended < planned:
        remarks.append(
            f"{ended} of {planned} runs have ended, {len(study.runs) - ended} have begun. Curves go as far as the runs "
            "do; where runs of a method are missing they are dashed, and means are of the others. Tables are of runs "
            "that ended."
        )
    if mixed := [task.name for task in tasks if len(task.steps) > 1]:
        remarks.append(
            f"On {', '.join(mixed)} some runs count environment steps, and others, which learn from a data set, "
            "gradient steps. These have no common axis: curves are shown by wall time only."
        )
    if unscaled:
        remarks.append(
            "No interquartile mean over tasks is shown, for want of a scale: nothing says which returns are 0 and 1 on "
            f"{', '.join(unscaled)}. State return_range in the task of the comparison's file."
        )
    counts = [int(count) for table in tables for count in table["ended"]]
    fewest = min((count for count in counts if count), default=0)
    if 0 < fewest < _FEW_RUNS:
        remarks.append(
            f"A method has as few as {fewest} run{'s' * (fewest > 1)} on a task. Bootstrap intervals of fewer than "
            f"{_FEW_RUNS} runs are too narrow, and those of a single run are not shown."
        )
    if len(set(counts)) > 1:
        remarks.append(
            "Methods or tasks differ in their number of ended runs; in the interquartile mean each run counts once."
        )
    if 0 in counts:
        remarks.append("Where a method has no ended run on a task, it is left out of what is said over all tasks.")
    commits = sorted({run.commit for run in study.runs if run.commit})
    if len(commits) > 1:
        remarks.append(f"The runs were made by {len(commits)} versions of the code: {', '.join(commits)}.")
    if arithmetics := sorted({run.arithmetic for run in study.runs if run.arithmetic}):
        remarks.append(f"Wall times are of {', '.join(arithmetics)}.")
    return remarks
