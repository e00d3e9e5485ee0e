"""Folders of strangers: a report about them imports nothing that they name."""

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cli.support import call
from tests.conftest import EVIL
from tests.experiments.test_report import make_run, model


def stranger_run(folder: Path, section: str, described: Any) -> None:
    """A folder of a run whose configuration describes an environment or a bandit."""
    make_run(folder, None)
    config = yaml.safe_load(model()) | {"data": {"init_args": {section: described}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_report_imports_no_class_that_a_folder_names(marker: Path, tmp_path: Path) -> None:
    evil = {"class_path": f"{EVIL}.Model"}
    inside = {"class_path": "flowmatch_rl.envs.ProcessEnvironment", "init_args": {"process": evil}}
    options = {"class_path": "flowmatch_rl.envs.GymnasiumEnvironment", "init_args": {"options": {"x": evil}}}
    cases = (
        ("environment", evil),
        ("environment", inside),
        ("environment", options),
        ("environment", f"{EVIL}.Model"),
        ("bandit", evil),
        ("bandit", {"class_path": "flowmatch_rl.testbeds.ProductBandit", "init_args": {"bandits": [evil]}}),
    )
    for place, (section, described) in enumerate(cases):
        run = tmp_path / str(place)
        stranger_run(run, section, described)
        if section == "bandit":
            (run / "actions.csv").write_text("a_0,a_1\n0.1,0.2\n")
        outcome = call(["report", str(run)])
        assert outcome.code == 2
        assert len(outcome.error_lines) == 1, outcome.err
        assert "config.yaml" in outcome.err
        assert f"{EVIL}.Model" in outcome.err
        assert not marker.exists()
        assert EVIL not in sys.modules
