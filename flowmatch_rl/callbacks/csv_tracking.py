"""Tracking in a table of comma-separated values."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from flowmatch_rl.callbacks.addresses import LOCAL_FOLDER
from flowmatch_rl.callbacks.run_logger import RunLogger
from flowmatch_rl.files import atomic_path, shown

_STEP = "step"


class CsvTracker(RunLogger):
    """The metrics of a run as a table: ``csv/fit.csv`` in its folder, and ``csv/test.csv`` for the command ``test``.

    One row per step, and one column per metric, with an empty field where a metric was not logged. Every row is on the
    disk as soon as it is logged. A run that is resumed continues the table: rows of the steps that it repeats are
    replaced. Parameters are in ``config.yaml`` and figures in ``figures``, both in the run's folder, with any tracker.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path = Path(LOCAL_FOLDER) / "csv" / "run.csv"
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}
        self._place = 0

    def begin_in(self, folder: Path, name: str, command: str, resumes: bool) -> None:
        """Choose the file; its rows before the first step of the run stay.

        Args:
            folder: The run's folder.
            name: Name of the run, which a table does not have.
            command: What is run.
            resumes: Whether the run continues another one.
        """
        self._path = folder / "csv" / f"{command}.csv"

    @property
    def name(self) -> str:
        """Path of the table."""
        return str(self._path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of their step.

        Args:
            metrics: Numbers by name.
            step: Step that they belong to.
        """
        row = {_STEP: step or 0} | {name: float(value) for name, value in metrics.items()}
        if not self._columns:
            self._rewrite([known for known in _read(self._path) if int(known[_STEP]) < row[_STEP]])
        if self._row.get(_STEP) == row[_STEP]:
            row = self._row | row
        else:
            self._place = self._path.stat().st_size
        self._row = row
        if not row.keys() <= set(self._columns):
            self._rewrite(_read(self._path, self._place))
        with self._path.open("r+", newline="") as file:
            file.seek(self._place)
            csv.DictWriter(file, self._columns).writerow(row)
            file.truncate()

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Write earlier rows anew, with columns for all metrics; the present row follows them."""
        kept = rows[0] if rows else ()
        self._columns = list(dict.fromkeys([_STEP, *self._columns, *kept, *self._row]))
        with atomic_path(self._path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        self._place = self._path.stat().st_size

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Nothing: ``config.yaml`` in the run's folder has them.

        Args:
            parameters: Values by name.
        """

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing: a table has no place for them.

        Args:
            tags: Values by name.
        """

    def log_file(self, path: Path, folder: str = "") -> None:
        """Nothing: files stay in the run's folder.

        Args:
            path: The file.
            folder: Folder among the run's files.
        """

    def lines(self) -> list[str]:
        """Where the table is."""
        return [f"tracking     {shown(self._path)}"]

    def close(self) -> None:
        """Nothing: every row is on the disk."""


def _read(path: Path, size: int | None = None) -> list[dict[str, str]]:
    """Rows in the first bytes of a table, all if None; without one that a killed process left half written."""
    if not path.exists():
        return []
    text = path.read_bytes()[:size].decode()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
