"""What a sweep has found: the table of its trials, the best of them as an overlay, and a page with pictures."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from optuna.trial import FrozenTrial

from flowmatch_rl.experiments.pages import as_text, render
from flowmatch_rl.experiments.plan import option
from flowmatch_rl.experiments.sweeps.plan import TRIALS, Sweep
from flowmatch_rl.experiments.sweeps.space import Choices, Overlays, number, plain
from flowmatch_rl.experiments.sweeps.trials import (
    COMPLETE,
    FAILED,
    LEAST_FOR_IMPORTANCES,
    PRUNED,
    Trials,
    reason_of,
    words_of,
)
from flowmatch_rl.experiments.sweeps.work import Evaluations, Objective
from flowmatch_rl.figures import save_figure
from flowmatch_rl.figures.comparison import encode_figure
from flowmatch_rl.figures.sweep import SearchedKey, SweepView, draw_history, draw_keys, draw_sweep
from flowmatch_rl.files import atomic_path, write_text
from flowmatch_rl.redaction import redact

PAGE, PICTURE, TABLE, BEST = "report.html", "report.png", "trials.csv", "best.yaml"

Merge = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
"""Overlays as one, the last on top."""


@dataclass(frozen=True)
class Findings:
    """What is written about a sweep.

    Attributes:
        sweep: The sweep.
        output: Its folder.
        trials: Its trials, at least one of which has ended.
        objective: What they are compared by.
        merge: Lays overlays over each other.
    """

    sweep: Sweep
    output: Path
    trials: Trials
    objective: Objective
    merge: Merge

    def write(self) -> list[Path]:
        """Write the table, and where a trial is complete the overlay, the page and the picture.

        Returns:
            Paths of the files.
        """
        with atomic_path(self.output / TABLE) as partial:
            self.table().to_csv(partial, index=False)
        best = self.trials.best()
        if best is None:
            return [self.output / TABLE]
        write_text(self.output / BEST, self._overlay(best))
        view = self._view()
        name = self.output.resolve().name
        write_text(self.output / PAGE, self._page(name, best, view))
        save_figure(draw_sweep(view, name, self._counts()), self.output / PICTURE)
        return [self.output / name for name in (PAGE, PICTURE, TABLE, BEST)]

    def table(self) -> pd.DataFrame:
        """A row for each trial, in their order; what is not known is empty."""
        return pd.DataFrame([self._row(trial) for trial in self.trials.all()])

    def lines(self) -> list[str]:
        """What the best trial is and how to train it, for the terminal."""
        best = self.trials.best()
        if best is None:
            return []
        values = ", ".join(f"{plain(key)}={number(best.params[key])}" for key in self.sweep.dimensions)
        value = f"{self.objective.label} {number(best.value)}"
        return [
            f"{'best':<12} trial {best.number} of {len(self.trials)}, {value}: {values}",
            f"{'train it':<12} {self.command()}",
        ]

    def command(self) -> str:
        """The command that trains the best trial, in a folder of its own."""
        files, options = self.sweep.common()
        seed = option("seed_everything", self.sweep.seeds[0])
        return redact(shlex.join(["flowmatch-rl", "fit", *files, f"-c={self.output / BEST}", *options, seed]))

    def _overlay(self, best: FrozenTrial) -> str:
        value = f"{self.objective.label} {number(best.value)}"
        head = [f"# The best of {len(self.trials)} trials, number {best.number}: {value}", f"#   {self.command()}"]
        overlay = self.merge(self.sweep.overlays(best.params))
        return "\n".join([*head, yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True)])

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        evaluations = trial.intermediate_values
        last = max(evaluations, default=None)
        return {
            "trial": trial.number,
            "state": words_of(trial.state),
            self.objective.label: trial.value if trial.state == COMPLETE else None,
            **{plain(key): trial.params[key] for key in self.sweep.dimensions},
            "last_step": last,
            "last_evaluation": None if last is None else evaluations[last],
            "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
            "reason": reason_of(trial),
            "folder": str(Path(TRIALS) / str(trial.number)),
        }

    def _view(self) -> SweepView:
        ended = [trial for trial in self.trials.all() if trial.state in (COMPLETE, PRUNED, FAILED)]
        importances = self.trials.importances()
        keys = [
            SearchedKey(
                name=plain(key),
                values=[trial.params[key] for trial in ended],
                choices=list(dimension.ends()) if isinstance(dimension, Choices | Overlays) else None,
                is_log=dimension.is_log,
                importance=importances.get(key, np.nan),
            )
            for key, dimension in self.sweep.dimensions.items()
        ]
        curves = [np.array(sorted(trial.intermediate_values.items()), dtype=float).reshape(-1, 2) for trial in ended]
        known = self._evaluations()
        return SweepView(
            objective=self.objective.label,
            maximizes=self.objective.direction == "max",
            numbers=np.array([trial.number for trial in ended]),
            values=np.array([trial.value if trial.state == COMPLETE else np.nan for trial in ended], dtype=float),
            pruned=np.array([trial.state == PRUNED for trial in ended]),
            failed=np.array([trial.state == FAILED for trial in ended]),
            curves=curves,
            counts="" if known is None else known.counts,
            curve_label=self.objective.label if known is None else known.column,
            keys=keys,
        )

    def _evaluations(self) -> Evaluations | None:
        """The first that there are."""
        seed = str(self.sweep.seeds[0])
        folders = (self.output / TRIALS / str(trial.number) / seed for trial in self.trials.all())
        return next(filter(None, (self.objective.evaluations(folder, needed=False) for folder in folders)), None)

    def _page(self, name: str, best: FrozenTrial, view: SweepView) -> str:
        shown = {plain(key): number(best.params[key]) for key in self.sweep.dimensions}
        table = self.table().sort_values(self.objective.label, ascending=self.objective.direction == "min")
        return render(
            "sweep.html.jinja",
            title=name,
            remarks=self._remarks(),
            best=pd.DataFrame({"key": list(shown), "value": list(shown.values())}),
            best_number=best.number,
            best_value=f"{self.objective.label} {number(best.value)}",
            command=self.command(),
            history=as_text(encode_figure(draw_history(view))),
            keys=as_text(encode_figure(draw_keys(view))),
            trials=table.drop(columns=["folder"]).map(_cell),
            objective=self.objective.label,
        )

    def _counts(self) -> str:
        counts = [(len(self.trials.in_state(state)), words_of(state)) for state in (COMPLETE, PRUNED, FAILED)]
        return f"{len(self.trials)} trials: " + ", ".join(f"{count} {word}" for count, word in counts if count)

    def _remarks(self) -> list[str]:
        failed = self.trials.in_state(FAILED)
        remarks = [self._counts() + "."]
        remarks += [f"Trial {trial.number} failed: {reason_of(trial)}" for trial in failed]
        if len(self.trials.in_state(COMPLETE)) < LEAST_FOR_IMPORTANCES:
            remarks.append(f"Fewer than {LEAST_FOR_IMPORTANCES} trials are complete: nothing is said of importances.")
        return remarks


def _cell(value: Any) -> str:
    """A cell of the table on the page; whole numbers of a column with gaps have no decimals."""
    if value is None or value == "" or value != value:
        return ""
    return number(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value)
