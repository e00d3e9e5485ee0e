"""What a comparison passes on to its runs, and what its folder holds of runs that did not get far."""

import fcntl
import json
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from flowmatch_rl.experiments import plan
from flowmatch_rl.experiments.executors import LocalExecutor
from tests.cli.support import CONF
from tests.experiments.comparisons import compare, starts

ESTIMATOR = {"class_path": "flowmatch_rl.estimators.PosteriorMeanEstimator"}


@pytest.mark.usefixtures("stand_in")
def test_class_in_an_option_reaches_the_run_as_it_is_written(tmp_path: Path) -> None:
    option = {"model.estimator": ESTIMATOR}
    tasks = {"swing": {"config": [], "options": option}}
    methods = {"plain": {"options": {"model.estimator": ESTIMATOR | {"init_args": {"num_samples": 4}}}}}
    assert compare(tmp_path, tasks=tasks, methods={"plain": {}}, options=option, seeds=[0]).code == 0
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["options"] == record["tasks"]["swing"]["options"] == option
    assert json.loads(starts(tmp_path, "swing/plain/0")[0]["options"]["model.estimator"]) == ESTIMATOR
    outcome = compare(tmp_path, f"--output={tmp_path / 'other'}", "--dry_run", tasks=tasks, methods=methods)
    assert f"'--model.estimator={json.dumps(methods['plain']['options']['model.estimator'])}'" in outcome.out


@pytest.mark.usefixtures("stand_in")
def test_definition_can_be_mended_as_long_as_its_runs_have_not_got_to_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plan, "PROGRAM", (sys.executable, "-c", "raise SystemExit(2)"))
        assert compare(tmp_path, options={"data.scoer": 5}).code == 1
    folder = tmp_path / "out" / "swing" / "plain" / "0"
    assert (folder / "output.log").is_file()
    with (folder / ".lock").open("a") as lock:  # of a process that a killed command left behind
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = compare(tmp_path, "--dry_run", options={"data.score": 5})
    assert (outcome.code, "data.scoer was 5, is not set" in outcome.err) == (2, True)
    assert compare(tmp_path, options={"data.score": 5}).code == 0
    outcome = compare(tmp_path, options={"data.score": 6})
    assert (outcome.code, "data.score was 5, is 6" in outcome.err) == (2, True)


@pytest.mark.usefixtures("stand_in")
def test_run_that_finishes_while_it_is_taken_over_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*_: object) -> None:
        folder = tmp_path / "out" / "swing" / "plain" / "0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text('{"metrics": {"test/return_mean": 7.0}}')

    monkeypatch.setattr(LocalExecutor, "end_leftovers", finish)
    outcome = compare(tmp_path, seeds=[0])
    assert (outcome.code, outcome.err) == (0, "")
    assert "[1 of 2] swing/plain/0 is finished, return 7.0" in outcome.out
    assert (len(starts(tmp_path, "swing/plain/0")), len(starts(tmp_path, "swing/layered/0"))) == (0, 1)
    assert "[2 of 2]" in outcome.out


LOGGER = {"class_path": "Tracker", "init_args": {"tracking_uri": "http://localhost:5000"}}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"options": {"trainer.logger.init_args.tracking_uri": "http://localhost:5000"}}, "options"),
        ({"methods": {"a": {"options": {"--trainer.logger": LOGGER}}}}, "methods.a.options"),
        ({"tasks": {"b": {"config": [str(CONF / "logger" / "server.yaml")]}}}, "tasks.b.config"),
    ],
)
def test_address_that_the_parent_run_would_not_share_is_refused(changes, where: str, tmp_path: Path) -> None:
    outcome = compare(tmp_path, tracking=True, **changes)
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert f"{where} must not set trainer.logger.init_args.tracking_uri" in outcome.err
    assert "MLFLOW_TRACKING_URI" in outcome.err
    assert compare(tmp_path, "--dry_run", **changes).code == 0  # nothing is tracked


@pytest.mark.usefixtures("stand_in")
def test_parent_run_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    assert compare(tmp_path, tracking=True, seeds=[0]).code == 0
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    parent = MlflowClient(f"sqlite:///{tmp_path / 'elsewhere.db'}").get_run(record["parent_run"])
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "out")
    assert not (tmp_path / "runs").exists()


def test_a_file_of_a_method_that_gives_a_key_twice_is_refused_before_any_work(tmp_path) -> None:
    (tmp_path / "twice.yaml").write_text("model: {class_path: SoftActorCritic}\nmodel: {init_args: {discount: 0.9}}\n")
    outcome = compare(tmp_path, methods={"doubled": {"config": [str(tmp_path / "twice.yaml")]}})
    assert outcome.code == 2
    assert "methods.doubled.config" in outcome.err
    assert "'model' is given twice" in outcome.err
    assert not (tmp_path / "out").exists()
