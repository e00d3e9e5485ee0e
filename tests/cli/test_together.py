"""Commands that are started together share a folder of runs, and one of them alone a run's folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from flowmatch_rl.cli.folders import run_folder, sole_run
from tests.cli.support import TWO_MOONS, call, environment, flow_arguments


@pytest.mark.slow
def test_runs_that_start_together_in_a_fresh_folder_are_all_tracked_and_never_share_their_own(tmp_path: Path) -> None:
    fit = flow_arguments("fit", TWO_MOONS, trainer__logger=None)
    shared = [*fit, "--trainer.default_root_dir=shared"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "flowmatch_rl", *args],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment(),
        )
        for args in (fit, fit, shared, shared)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started[:2]] == [0, 0], errors
    assert sorted(process.returncode for process in started[2:]) == [0, 2], errors
    (refused,) = (error for process, error in zip(started, errors, strict=True) if process.returncode)
    assert len(refused.splitlines()) == 1
    assert "shared" in refused
    assert any(f"process {process.pid}" in refused for process in started[2:]) or "holds a run already" in refused
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("flowmatch_rl").experiment_id])  # pyright: ignore
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    names = {run.data.tags["run_dir"]: str(run.info.run_name) for run in runs}
    assert len(names) == 3
    assert names.pop("shared").startswith("two_moons/")
    assert all(folder == f"runs/{name}" for folder, name in names.items())
    assert not list(tmp_path.rglob("*.lock"))


def test_a_run_in_a_folder_that_is_in_use_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    fit = flow_arguments("fit", TWO_MOONS, trainer__default_root_dir=tmp_path / "run")
    with sole_run(tmp_path / "run", tmp_path / "kept", is_new=True):
        before = sorted(tmp_path.rglob("*"))
        elsewhere = [
            *fit,
            f"--trainer.default_root_dir={tmp_path / 'other'}",
            f"--checkpoints.dirpath={tmp_path / 'kept'}",
        ]
        for args, folder, option in (
            (fit, "run", "--trainer.default_root_dir"),
            ([*fit, "--ckpt_path=last"], "run", "--trainer.default_root_dir"),
            (elsewhere, "kept", "--checkpoints.dirpath"),
        ):
            outcome = call(args)
            assert outcome.code == 2
            assert len(outcome.error_lines) == 1, outcome.err
            for word in (f"{tmp_path / folder} is in use by process {os.getpid()};", option):
                assert word in outcome.err
        assert sorted(path for path in tmp_path.rglob("*") if path != tmp_path / "other") == before
    assert call(fit).code == 0
    assert not list(tmp_path.rglob("*.lock"))


def test_folders_of_runs_that_begin_in_the_same_moment_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    monkeypatch.setattr(Path, "exists", lambda _: False)  # both look before either makes its folder
    folders = []
    for _ in range(3):
        monkeypatch.delenv("FLOWMATCH_RL_RUN_DIR", raising=False)
        folders.append(run_folder("task"))
    monkeypatch.delenv("FLOWMATCH_RL_RUN_DIR")
    assert folders == [f"runs/task/{name}" for name in ("now", "now-2", "now-3")]
