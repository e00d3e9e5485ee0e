"""Reports: runs beside each other on one page, in one picture and in one table."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.experiments.pages import as_text, render
from flowmatch_rl.experiments.runs import RETURN, SUCCESS, read_study
from flowmatch_rl.experiments.statistics import BANDIT_METRICS, SCORES, Summary, summarize
from flowmatch_rl.figures import draw_bandit_samples, save_figure
from flowmatch_rl.figures.comparison import (
    Aggregate,
    TaskCurves,
    draw_aggregate,
    draw_comparison,
    draw_task,
    encode_figure,
    percent,
)
from flowmatch_rl.files import atomic_path, write_text

PAGE, PICTURE, SAMPLES, TABLE = "report.html", "report.png", "samples.png", "results.csv"
_UNKNOWN = "\N{EN DASH}"
_DECIMALS = {RETURN: 1, SUCCESS: 3}
_RATES = {"env_steps": "env steps / s", "gradient_steps": "updates / s"}


class NothingToReportError(UserError):
    """No run in the folders has been evaluated yet."""


def write_report(folders: Sequence[Path], output: Path, level: float = 0.95) -> list[Path]:
    """Write a report about runs.

    Args:
        folders: Folders of comparisons, of runs, or with runs somewhere below.
        output: Folder for the files; made if it does not exist.
        level: Level of the bootstrap intervals, in (0, 1).

    Returns:
        Paths of the files: ``report.html``, a page with its pictures inside; ``report.png``, curves and returns of
        tasks that have returns; ``samples.png``, samples on tasks that are bandits; and ``results.csv``, what the test
        of each run measured.

    Raises:
        UserError: If a folder does not exist, its files are damaged, or the level is not in (0, 1).
        NothingToReportError: If no run has a learning curve of returns, or samples for a bandit.
    """
    check_range("(0, 1)", level=level)
    study = read_study(folders)
    if not any(run.curve is not None or run.on_bandit for run in study.runs):
        names = ", ".join(map(str, folders))
        raise NothingToReportError(f"no run in {names} has been evaluated yet; there is nothing to report")
    summary = summarize(study, level)
    title = " and ".join(folder.resolve().name for folder in folders)
    files = [output / PAGE]
    write_text(output / PAGE, make_page(title, summary))
    if summary.tasks:
        note = f"{study.num_ended} of {sum(study.planned.values())} runs ended"
        files.append(output / PICTURE)
        save_figure(draw_comparison(summary.tasks, summary.aggregate, title, note), output / PICTURE)
    if summary.bandits:
        files.append(output / SAMPLES)
        save_figure(draw_bandit_samples(summary.bandits), output / SAMPLES)
    files.append(output / TABLE)
    with atomic_path(output / TABLE) as partial:
        study.metrics().to_csv(partial, index=False)
    return files


def make_page(title: str, summary: Summary) -> str:
    """The page.

    Args:
        title: Title.
        summary: What it shows.

    Returns:
        HTML that needs no other file.
    """
    aggregate = summary.aggregate
    known = aggregate.interquartile_mean is not None or aggregate.improvement is not None
    return render(
        "report.html.jinja",
        title=title,
        remarks=summary.remarks,
        level=percent(summary.level),
        aggregate=as_text(encode_figure(draw_aggregate(aggregate))) if known else None,
        means=_means(aggregate),
        score=aggregate.score,
        improvement=_improvement(aggregate),
        tasks=[
            (task.name, as_text(encode_figure(draw_task(task))), task.score, _scores(task, table))
            for task, table in zip(summary.tasks, summary.tables, strict=True)
        ],
        samples=as_text(encode_figure(draw_bandit_samples(summary.bandits))) if summary.bandits else None,
        bandits=[(name, _distances(table)) for name, table in summary.bandit_tables.items()],
    )


def _scores(task: TaskCurves, table: pd.DataFrame) -> pd.DataFrame:
    """Table of a task with returns, in words: the score of the task, and the mean of what else all runs measured."""
    rate = _RATES[task.steps[0]] if len(task.steps) == 1 else "steps / s"
    decimals = {name: _DECIMALS[metric] for metric, name in SCORES.items()}[task.score]
    bounds = zip(table["low"], table["high"], strict=True)
    others = {
        name: [_number(value, _DECIMALS[metric]) for value in table[metric]]
        for metric, name in SCORES.items()
        if name != task.score and not all(map(math.isnan, table[metric]))
    }
    return pd.DataFrame(
        {
            "method": table["method"],
            task.score: [_number(value, decimals) for value in table["mean"]],
            "std over runs": [_number(value, decimals) for value in table["std"]],
            f"{percent(task.level)} interval": [_between(low, high, decimals) for low, high in bounds],
            **others,
            "return over training": [_number(value, decimals) for value in table["mean_return"]],
            "runs ended": [f"{ended} of {all_}" for ended, all_ in zip(table["ended"], table["planned"], strict=True)],
            rate: table["steps_per_s"].map(_number),
        }
    )


def _distances(table: pd.DataFrame) -> pd.DataFrame:
    """Table of a bandit, in words."""
    shown = {"method": list(table.index)}
    for key, name in BANDIT_METRICS.items():
        pairs = list(zip(table[key, "mean"], table[key, "std"], strict=True))
        if not all(math.isnan(mean) for mean, _ in pairs):
            shown[name] = [_number(mean, 4) + _deviation(std) for mean, std in pairs]
    runs = zip(table["runs", "ended"], table["runs", "planned"], strict=True)
    shown["runs ended"] = ["" if math.isnan(planned) else f"{ended:.0f} of {planned:.0f}" for ended, planned in runs]
    return pd.DataFrame(shown)


def _means(aggregate: Aggregate) -> pd.DataFrame | None:
    if aggregate.interquartile_mean is None or aggregate.mean is None:
        return None
    columns = {"interquartile mean": aggregate.interquartile_mean, "mean over tasks": aggregate.mean}
    if aggregate.area is not None:
        columns["interquartile mean over training"] = aggregate.area
    shown = {
        name: [_number(value, 3) + _bracket(low, high, 3) for value, low, high in means.tolist()]
        for name, means in columns.items()
    }
    return pd.DataFrame({"method": list(aggregate.methods)} | shown)


def _improvement(aggregate: Aggregate) -> pd.DataFrame | None:
    if aggregate.improvement is None:
        return None
    body = [
        [name, *(_number(value, 2) + _bracket(low, high) for value, low, high in row)]
        for name, row in zip(aggregate.methods, aggregate.improvement.tolist(), strict=True)
    ]
    return pd.DataFrame(body, columns=["", *aggregate.methods])


def _number(value: float, decimals: int = 1) -> str:
    return _UNKNOWN if math.isnan(value) else f"{value:,.{decimals}f}"


def _between(low: float, high: float, decimals: int = 1) -> str:
    return _UNKNOWN if math.isnan(low) else f"{_number(low, decimals)} to {_number(high, decimals)}"


def _deviation(std: float) -> str:
    return "" if math.isnan(std) else f" \N{PLUS-MINUS SIGN} {std:.4f}"


def _bracket(low: float, high: float, decimals: int = 2) -> str:
    return "" if math.isnan(low) else f" [{low:.{decimals}f}, {high:.{decimals}f}]"
