"""Comparisons of ``conf/comparison`` of whose runs the configuration, the learning curve and the result are kept."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowmatch_rl.experiments.runs import Run, read_study

RUNS = Path("runs/comparisons")
KEPT = ("config.yaml", "figures/learning_curve.csv", "result.json")


def train(name: str, records: Path) -> None:
    """Make the runs of a comparison that are missing; those that were interrupted go on.

    Args:
        name: Its name.
        records: Folder of what is kept.
    """
    command = [sys.executable, "-m", "flowmatch_rl", "compare", f"-c=conf/comparison/{name}.yaml"]
    subprocess.run([*command, f"--output={RUNS / name}", "--tracking=false"], check=True)
    record(name, records)


def record(name: str, records: Path) -> None:
    """Copy what is kept of a comparison's runs, finished or not.

    Args:
        name: Its name.
        records: Folder of what is kept.
    """
    for source in sorted((RUNS / name).rglob("*")):
        place = source.relative_to(RUNS / name)
        wanted = any(place.match(kept) for kept in KEPT) or place.parts == ("comparison.json",)
        if source.is_file() and wanted:
            target = records / name / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def recorded(names: Sequence[str], records: Path) -> Iterator[tuple[str, str, str, list[Run]]]:
    """Comparison, task, method and runs of what is kept.

    Args:
        names: Names of the comparisons.
        records: Folder of what is kept.
    """
    for name in names:
        if not (records / name).is_dir():
            continue
        study = read_study([records / name])
        for task in study.tasks:
            for method in study.methods:
                if runs := study.of(task, method):
                    yield name, task, method, runs


def rate(runs: Sequence[Run]) -> float:
    """Steps per second between the first and the last evaluation of the fastest run, NaN if none has two."""
    curves = [run.curve for run in runs if run.curve is not None and len(run.curve.steps) > 1]
    return max(
        (float((curve.steps[-1] - curve.steps[0]) / (curve.seconds[-1] - curve.seconds[0])) for curve in curves),
        default=float("nan"),
    )


def last_step(runs: Sequence[Run]) -> int:
    """The step that the runs came to; 0 where none was evaluated."""
    return max((int(run.curve.steps[-1]) for run in runs if run.curve is not None), default=0)
