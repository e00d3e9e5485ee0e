from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger

from flowmatch_rl.callbacks.artifacts import file_path, publish, writes_files
from tests.callbacks.stand_ins import stand_in_trainer


class RecordingLogger(MLFlowLogger):
    """An MLflow logger that keeps what it is given; it has no server."""

    def __init__(self) -> None:
        self.given: list[tuple[str, str, str]] = []

    @property
    def experiment(self) -> Any:
        return self

    @property
    def run_id(self) -> str:
        return "run"

    def log_artifact(self, run_id: str, path: str, folder: str) -> None:
        self.given.append((run_id, path, folder))


def test_a_file_is_published_to_every_mlflow_run_and_to_no_other_logger(tmp_path: Path) -> None:
    loggers = [RecordingLogger(), CSVLogger(str(tmp_path)), RecordingLogger()]
    publish(stand_in_trainer(tmp_path, loggers=loggers), tmp_path / "a.png", "figures")
    expected = [("run", str(tmp_path / "a.png"), "figures")]
    assert loggers[0].given == expected
    assert loggers[2].given == expected


def test_the_first_process_of_a_real_run_writes_files(tmp_path: Path) -> None:
    assert writes_files(stand_in_trainer(tmp_path))


@pytest.mark.parametrize("change", [{"is_global_zero": False}, {"sanity_checking": True}, {"fast_dev_run": 1}], ids=str)
def test_other_processes_sanity_checks_and_trial_runs_write_no_files(tmp_path: Path, change: dict[str, Any]) -> None:
    assert not writes_files(stand_in_trainer(tmp_path, **change))


def test_the_folder_of_a_file_is_made(tmp_path: Path) -> None:
    path = file_path(stand_in_trainer(tmp_path / "run"), "figures", "a.png")
    assert path == tmp_path / "run" / "figures" / "a.png"
    path.write_text("")
