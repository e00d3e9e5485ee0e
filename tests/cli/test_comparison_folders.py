"""What a comparison passes on to its runs, and what its folder holds of runs that did not get far."""

import fcntl
import json
import sys
from pathlib import Path

import pytest

from flowmatch_rl.callbacks import Video
from flowmatch_rl.cli import comparison_runs
from tests.cli.comparisons import compare, starts
from tests.cli.support import PENDULUM, arguments, call

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
        patch.setattr(comparison_runs, "_PROGRAM", (sys.executable, "-c", "raise SystemExit(2)"))
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
    def finish(_: object) -> None:
        folder = tmp_path / "out" / "swing" / "plain" / "0"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text('{"metrics": {"test/return_mean": 7.0}}')

    monkeypatch.setattr(comparison_runs, "_take_over", finish)
    outcome = compare(tmp_path, seeds=[0])
    assert (outcome.code, outcome.err) == (0, "")
    assert "[1 of 2] swing/plain/0 is finished, return 7.0" in outcome.out
    assert (len(starts(tmp_path, "swing/plain/0")), len(starts(tmp_path, "swing/layered/0"))) == (0, 1)
    assert "[2 of 2]" in outcome.out


@pytest.mark.usefixtures("without_figures")
def test_result_appears_when_the_video_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(Video, "on_test_end", lambda *_: seen.append((tmp_path / "result.json").exists()))
    options = {"video__enabled": "true", "trainer__logger": "false", "trainer__default_root_dir": tmp_path}
    outcome = call(arguments("fit", PENDULUM, **options))
    assert outcome.code == 0, outcome.err
    assert seen == [False]
    assert (tmp_path / "result.json").exists()
