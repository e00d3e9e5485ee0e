"""What a comparison passes on to its runs, and what its folder holds of runs that did not get far."""

import json
from pathlib import Path

import pytest

from tests.cli.comparisons import compare, starts

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
