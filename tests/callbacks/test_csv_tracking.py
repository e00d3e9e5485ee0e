"""Metrics as a table that is whole at any time, and continued by a resumed run."""

import csv
from pathlib import Path

from flowmatch_rl.callbacks import CsvTracker


def tracker(folder: Path) -> CsvTracker:
    begun = CsvTracker()
    begun.begin_in(folder, "name", "fit", resumes=True)
    return begun


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "fit.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_metrics_of_a_step_share_a_row_that_is_on_the_disk_at_once(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    log.log_metrics({"a": 1.0}, 2)
    assert rows(tmp_path) == [{"step": "2", "a": "1.0"}]
    log.log_metrics({"a": 3.0}, 4)
    log.log_metrics({"b": 0.5}, 4)
    log.log_metrics({"a": 2.25}, 4)
    log.log_metrics({"b": 7.0}, 1)  # steps may go back, as those of a test
    assert rows(tmp_path) == [
        {"step": "2", "a": "1.0"},
        {"step": "4", "a": "2.25", "b": "0.5"},
        {"step": "1", "b": "7.0"},
    ]


def test_a_resumed_run_continues_the_table_and_replaces_what_it_repeats(tmp_path: Path) -> None:
    log = tracker(tmp_path)
    for step in (1, 2, 3, 4):
        log.log_metrics({"a": float(step), f"only_{step}": 1.0}, step)
    with (tmp_path / "csv" / "fit.csv").open("a") as file:
        file.write("1")  # half of a row whose process was killed
    log = tracker(tmp_path)
    log.log_metrics({"a": 30.0}, 3)
    log.log_metrics({"new": 9.0}, 5)
    assert rows(tmp_path) == [
        {"step": "1", "a": "1.0", "only_1": "1.0"},
        {"step": "2", "a": "2.0", "only_2": "1.0"},
        {"step": "3", "a": "30.0"},
        {"step": "5", "new": "9.0"},
    ]
