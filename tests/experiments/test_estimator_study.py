"""The command ``estimators``."""

import pandas as pd
import pytest
import yaml

from tests.cli.support import CONF, Outcome, call
from tests.combinations import one_test

SETTINGS = {
    "bandits": {"flat": {"class_path": "Flat", "init_args": {"dimensions": 1}}, "six": {"class_path": "Bimodal"}},
    "estimators": {
        "product": {"class_path": "PosteriorMeanEstimator", "init_args": {"num_samples": 4}},
        "point": {"class_path": "PointScoreEstimator"},
    },
    "times": [0.2, 0.7],
    "num_points": 2,
    "num_repeats": 3,
}


def study(folder, **changes) -> Outcome:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes, sort_keys=False))
    return call(["estimators", f"-c={path}", f"--output={folder / 'results'}"])


def test_errors_are_a_table_and_a_figure(tmp_path) -> None:
    outcome = study(tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    names = ["estimators.csv", "estimators.png"]
    assert outcome.out.split() == [str(tmp_path / "results" / name) for name in names]
    assert (tmp_path / "results" / "estimators.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "results" / "estimators.csv")
    rows = [(b, e, t) for b in ("flat", "six") for e in ("product", "point") for t in (0.2, 0.7)]
    assert list(zip(table["bandit"], table["estimator"], table["t"], strict=True)) == rows
    assert (table["rmse"] > 0.0).all()
    assert (table[table["estimator"] == "point"]["deviation"] == 0.0).all()
    assert (table[table["estimator"] == "product"]["deviation"] > 0.0).all()


@one_test
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bandits": {}}, "bandits must name at least one, got none"),
        ({"bandits": {"bad": {"class_path": "Flat", "init_args": {"dimensions": 0}}}}, "at least 1, got 0"),
        ({"bandits": {"bad": {"class_path": "Blat"}}}, "Blat"),
        ({"estimators": {}}, "estimators must name at least one"),
        ({"estimators": {"md": {"class_path": "ReweightedEndpoints"}}}, "estimators.md: ReweightedEndpoints weights"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": 1e-6}, "bandits.six: Bimodal is resolved at a temperature of at least"),
        ({"times": [0.0]}, "times must lie in (0, 1), got 0.0"),
        ({"times": []}, "times must name at least one"),
        ({"num_repeats": 1}, "num_repeats must be at least 2, got 1"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(changes, message, tmp_path) -> None:
    outcome = study(tmp_path, **changes)
    assert outcome.code == 2
    assert len(outcome.error_lines) <= 2
    assert message in outcome.err
    assert not (tmp_path / "results").exists()


def test_the_configuration_of_the_repository_is_valid() -> None:
    outcome = call(["estimators", f"-c={CONF / 'bandit' / 'estimators.yaml'}", "--output=none", "--temperature=-1"])
    assert (outcome.code, "temperature must be positive" in outcome.err) == (2, True)
