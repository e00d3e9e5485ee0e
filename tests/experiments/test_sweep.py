"""Sweeps of stand-ins for runs: which points are tried, what is pruned, and what happens when something breaks off."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks.nesting import PARENT
from flowmatch_rl.cli import sweeps
from flowmatch_rl.experiments import plan
from flowmatch_rl.experiments.sweeps import report as sweep_report
from tests.cli.support import FLOW_SIZES, TWO_MOONS, Outcome, call, environment
from tests.experiments.comparisons import STAND_IN

SPACE: dict[str, Any] = {"score": {"float": [1.0, 9.0]}, "data.size": {"choices": [16, 32]}}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing."""
    for name in ("draw_history", "draw_keys", "draw_sweep"):
        monkeypatch.setattr(sweep_report, name, lambda *_: None)
    monkeypatch.setattr(sweep_report, "encode_figure", lambda _: b"")
    monkeypatch.setattr(sweep_report, "save_figure", lambda _, path: path.touch())


@pytest.fixture
def stand_in(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take no time, of a model that monitors its return."""
    monkeypatch.setattr(plan, "PROGRAM", (sys.executable, str(STAND_IN)))
    monkeypatch.setattr(sweeps, "check_run", lambda arguments: ("val/return_mean", "max"))


def sweep(folder: Path, *options: str, **changes: Any) -> Outcome:
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text("data: {class_path: OnlineData}\n")
    content = {
        "base": [str(folder / "task.yaml")],
        "space": SPACE,
        "trials": 3,
        "pruner": "NoPruner",
        "tracking": False,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return call(["sweep", f"-c={folder / 'sweep.yaml'}", f"--output={folder / 'out'}", *options])


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "out" / "trials.csv")


def starts(folder: Path, trial: int, seed: int = 0) -> list[dict[str, Any]]:
    path = folder / "out" / "trials" / str(trial) / str(seed) / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.usefixtures("stand_in")
def test_the_best_of_all_trials_is_named_with_the_command_that_trains_it(tmp_path: Path) -> None:
    outcome = sweep(tmp_path, options={"model.depth": 2}, seeds=[0, 2])
    assert (outcome.code, outcome.err) == (0, "")
    found = table(tmp_path)
    assert list(found.state) == ["complete"] * 3
    # A stand-in scores its option and its seed: the value is the mean over the seeds.
    assert list(found.return_mean) == pytest.approx(list(found.score + 1.0))
    best = found.iloc[int(found.return_mean.argmax())]
    assert f"best         trial {best.trial} of 3, return_mean {best.return_mean:.4g}" in outcome.out
    files = f"-c={tmp_path / 'task.yaml'} -c={tmp_path / 'out' / 'best.yaml'} --model.depth=2 --seed_everything=0"
    assert f"train it     flowmatch-rl fit {files}" in outcome.out
    overlay = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert overlay == {"score": pytest.approx(best.score), "data": {"size": best["data.size"]}}
    options = starts(tmp_path, best.trial, seed=2)[0]["options"]
    assert (float(options["score"]), options["data.size"]) == (overlay["score"], str(best["data.size"]))
    assert (options["seed_everything"], options["model.depth"]) == ("2", "2")
    assert {path.name for path in (tmp_path / "out").glob("report.*")} == {"report.html", "report.png"}
    again = sweep(tmp_path, options={"model.depth": 2}, seeds=[0, 2])
    assert (again.code, len(starts(tmp_path, 0))) == (0, 1)


@pytest.mark.usefixtures("stand_in")
def test_more_trials_are_fine_and_the_same_as_at_once_but_another_space_is_refused(tmp_path: Path) -> None:
    sampler = {"class_path": "TpeSampler", "init_args": {"startup_trials": 2}}
    assert sweep(tmp_path / "at_once", trials=5, sampler=sampler).code == 0
    assert sweep(tmp_path / "later", trials=2, sampler=sampler).code == 0
    assert sweep(tmp_path / "later", trials=5, sampler=sampler).code == 0
    columns = ["trial", "score", "data.size", "return_mean"]
    at_once = table(tmp_path / "at_once")[columns]
    pd.testing.assert_frame_equal(at_once, table(tmp_path / "later")[columns])
    assert at_once.score.nunique() == 5
    assert sweep(tmp_path / "later", trials=9, sampler=sampler, timeout_s=1e-6).code == 0
    assert len(table(tmp_path / "later")) == 5  # no trial begins after the timeout
    other = SPACE | {"score": {"float": [1.0, 8.0]}}
    refused = sweep(tmp_path / "later", space=other, trials=5, sampler=sampler)
    assert (refused.code, len(refused.error_lines)) == (2, 1)
    assert "space.score.float was [1.0, 9.0], is [1.0, 8.0]" in refused.err
    with (tmp_path / "later" / "out" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = sweep(tmp_path / "later", trials=6, sampler=sampler)
    assert (busy.code, len(busy.error_lines)) == (1, 1)
    assert "another command works in" in busy.err


@pytest.mark.usefixtures("stand_in")
def test_trials_worse_than_the_median_are_ended_and_count_as_pruned(tmp_path: Path) -> None:
    space = {"score": {"choices": [8, 6, 4, 9]}, "act": {"choices": ["end", "linger"]}}
    pruner = {"class_path": "MedianPruner", "init_args": {"startup_trials": 2, "warmup_steps": 15}}
    outcome = sweep(tmp_path, space=space, trials=8, sampler="GridSampler", pruner=pruner)
    assert outcome.code == 0, outcome.err
    found = table(tmp_path)
    # 8 sets the scale; of 6 and 4 the ones after the second trial are worse than the median; 9 is better than all.
    assert list(found.state) == ["complete", "complete", *["pruned"] * 4, "complete", "complete"]
    pruned = found[found.state == "pruned"]
    assert list(pruned.last_step) == [20.0] * 4  # the first evaluation after 15 steps
    assert pruned.return_mean.isna().all()
    assert "trials/3/0 is pruned after 20 env_steps, return_mean 3" in outcome.out
    assert "pruned" in (tmp_path / "out" / "report.html").read_text()
    # One that waits is ended by a signal, at which it saves; one that had ended before it was read counts the same.
    assert (tmp_path / "out" / "trials" / "3" / "0" / "checkpoints" / "last.ckpt").is_file()
    assert "best         trial 6 of 8" in outcome.out


@pytest.mark.usefixtures("stand_in")
def test_a_trial_that_fails_is_told_in_one_line_and_the_others_go_on(tmp_path: Path) -> None:
    space = {"act": {"choices": ["end", "fail"]}, "score": {"choices": [1, 2, "nan"]}}
    outcome = sweep(tmp_path, "--workers=2", space=space, trials=9, sampler="GridSampler")
    assert (outcome.code, outcome.err) == (0, "")
    assert "the grid has 6 points, fewer than trials 9" in outcome.out
    found = table(tmp_path)
    assert list(found.state) == ["complete", "complete", *["failed"] * 4]
    assert list(found.reason[2:]) == ["return_mean is nan", *["line 19 (status 3)"] * 3]
    assert "trials/3/0 failed: line 19 (status 3)" in outcome.out
    nothing = sweep(tmp_path / "all", space={"score": {"choices": [1, 2]}}, options={"act": "fail"}, trials=2)
    assert (nothing.code, len(nothing.error_lines)) == (1, 1)
    assert "none of 2 trials has a value; trial 1 failed: line 19 (status 3)" in nothing.err


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_that_was_killed_goes_on_with_the_same_trials(tmp_path: Path) -> None:
    space = {"score": {"float": [1.0, 9.0]}, "data.size": {"int": [1, 64], "log": True}}
    options = {"act": "wait_first"}
    child = os.fork()
    if child == 0:
        try:
            sweep(tmp_path, space=space, options=options)
        finally:
            os._exit(0)
    try:
        waits = tmp_path / "out" / "trials" / "0" / "0" / "alive"
        deadline = time.monotonic() + 120.0
        while not waits.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    (first,) = starts(tmp_path, 0)
    assert Path(f"/proc/{first['pid']}").exists()  # it trains on, alone
    outcome = sweep(tmp_path, space=space, options={"act": "wait_first"})
    assert (outcome.code, outcome.err) == (0, "")
    assert f"trials/0/0 is still trained by process {first['pid']}" in outcome.out
    begun, resumed = (start["options"] for start in starts(tmp_path, 0))
    assert resumed.pop("ckpt_path").endswith("trials/0/0/checkpoints/last.ckpt")
    assert begun == resumed
    assert list(table(tmp_path).state) == ["complete"] * 3
    whole = sweep(tmp_path / "whole", space=space, options={"act": "end"})
    assert whole.code == 0
    columns = ["score", "data.size", "return_mean"]
    pd.testing.assert_frame_equal(table(tmp_path)[columns], table(tmp_path / "whole")[columns])


@pytest.mark.usefixtures("stand_in")
def test_runs_lie_under_one_parent_with_the_values_of_their_trial(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    space = {"model.init_args.size": {"choices": ["small", "large"]}}
    outcome = sweep(tmp_path, tracking=True, space=space, trials=1, sampler="GridSampler")
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    context = json.loads(starts(tmp_path, 0)[0]["context"])
    expected = {PARENT: record["parent_run"], "mlflow.runName": "trials/0/0", "trial": "0"}
    assert context == {**expected, "space/model.size": "small"}
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    parent = client.get_run(record["parent_run"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "out")
    files = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert files == {"sweep.json", "report.html", "report.png", "trials.csv", "best.yaml"}
    # Stand-ins are not tracked: one that is, and whose trial fails, is marked.
    folder = tmp_path / "out" / "trials" / "1" / "0"
    child = client.create_run(parent.info.experiment_id, tags={PARENT: parent.info.run_id, "run_dir": str(folder)})
    monkeypatch.setattr(plan, "PROGRAM", (sys.executable, "-c", "raise SystemExit(4)"))
    assert sweep(tmp_path, tracking=True, space=space, trials=2, sampler="GridSampler").code == 0
    assert client.get_run(child.info.run_id).data.tags["trial_state"] == "failed"


@pytest.mark.parametrize("where", ["options", "base", "space"])
@pytest.mark.usefixtures("stand_in")
def test_runs_with_a_server_that_their_parent_does_not_share_are_refused(where: str, tmp_path: Path) -> None:
    content = {"trainer": {"logger": {"init_args": {"tracking_uri": "http://elsewhere"}}}}
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump(content))
    changes = {
        "options": {"options": {"trainer.logger.init_args.tracking_uri": "http://elsewhere"}},
        "base": {"base": [str(tmp_path / "elsewhere.yaml")]},
        "space": {"space": {"server": {"overlays": {"none": [], "other": str(tmp_path / "elsewhere.yaml")}}}},
    }[where]
    outcome = sweep(tmp_path, tracking=True, **changes)
    assert outcome.code == 2
    assert f"{where}{'.server' * (where == 'space')} must not set trainer.logger.init_args.tracking_uri" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("stand_in")
def test_a_pruner_without_anything_to_compare_is_refused_and_can_be_mended(tmp_path: Path) -> None:
    changes = {"metric": "success_rate", "direction": "max", "pruner": "MedianPruner"}
    space = {"act": {"choices": ["linger", "end"]}}
    outcome = sweep(tmp_path, space=space, trials=1, sampler="GridSampler", **changes)
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert "have no success_rate to prune trials by; choose one of return_mean with --prune_by" in outcome.err
    assert not list((tmp_path / "out").glob("trials/*/*/alive"))  # the run was stopped
    mended = sweep(tmp_path, space=space, trials=1, sampler="GridSampler", **changes, prune_by="return_mean")
    assert (mended.code, len(mended.error_lines)) == (1, 1)
    assert "trial 0 failed: its test has no success_rate, but return_mean" in mended.err


@pytest.mark.slow
def test_real_runs_that_are_killed_end_as_a_sweep_that_was_not(tmp_path: Path) -> None:
    options = {key: value for key, value in FLOW_SIZES.items() if key != "trainer.logger"}
    changes = {
        "base": [str(TWO_MOONS)],
        "space": {"model.optimizer.learning_rate": {"float": [1e-4, 1e-2], "log": True}},
        "options": options | {"data.num_updates": 120, "data.epoch_updates": 12},
        "sampler": {"class_path": "TpeSampler", "init_args": {"startup_trials": 2}},
        "pruner": {"class_path": "MedianPruner", "init_args": {"startup_trials": 2, "warmup_steps": 30}},
        "trials": 4,
    }
    assert sweep(tmp_path / "whole", **changes).code == 0
    definition = tmp_path / "whole" / "sweep.yaml"
    command = [sys.executable, "-m", "flowmatch_rl", "sweep", f"-c={definition}", f"--output={tmp_path / 'out'}"]
    killed = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 600.0
        last = tmp_path / "out" / "trials" / "1" / "0" / "checkpoints" / "last.ckpt"
        while not last.exists() and time.monotonic() < deadline:
            assert killed.poll() is None
            time.sleep(0.05)
    finally:
        killed.kill()
        killed.wait()
    outcome = call(command[3:])
    assert (outcome.code, outcome.err) == (0, "")
    assert "trials/1/0" in outcome.out  # resumes, or had ended by itself
    columns = ["trial", "state", "energy_distance", "model.optimizer.learning_rate", "last_step", "last_evaluation"]
    pd.testing.assert_frame_equal(table(tmp_path)[columns], table(tmp_path / "whole")[columns])
