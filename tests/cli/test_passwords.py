"""A password in the address of the tracking is used, and neither written nor printed."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flowmatch_rl.callbacks import Tracker, courier
from flowmatch_rl.checks import UserError
from flowmatch_rl.experiments.comparison import list_commands
from flowmatch_rl.experiments.plan import Method, Plan, Task
from tests.cli.support import TWO_MOONS, call, flow_arguments

SECRET = "pa55w0rd"
ADDRESS = f"http://me:{SECRET}@host:5000"


@pytest.mark.usefixtures("without_figures")
def test_a_password_in_the_address_of_the_tracking_stays_there(tmp_path: Path, monkeypatch) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setattr(courier, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Spy}))
    monkeypatch.setattr(Spy, "seen", seen)
    options = {"trainer__logger": "Tracker", "trainer__logger__init_args__tracking_uri": ADDRESS}
    folder = tmp_path / "run"
    arguments = flow_arguments(
        "fit", TWO_MOONS, trainer__default_root_dir=folder, data__dataset__init_args__num_samples=600, **options
    )
    monkeypatch.setattr(sys, "argv", ["flowmatch-rl", *arguments])
    outcome = call(arguments)
    assert outcome.code == 0, outcome.err
    written = [path.read_text() for path in folder.rglob("*") if path.suffix in (".yaml", ".json", ".jsonl", ".csv")]
    assert any("me:***@host" in text for text in written)
    (journal,) = folder.rglob("*.jsonl")
    assert "--trainer.logger.init_args.tracking_uri=http://me:***@host" in journal.read_text()  # the command, a tag
    for text in (*written, outcome.out, outcome.err):
        assert SECRET not in text
    arguments, variables = json.loads(seen.read_text())
    assert SECRET not in str(arguments)  # which everybody on the machine sees
    assert variables["MLFLOW_TRACKING_URI"] == ADDRESS  # which it needs


class Spy(subprocess.Popen):
    """A process that writes down how another would have been started, and ends."""

    seen = Path()

    def __init__(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        self.seen.write_text(json.dumps([command, env]))
        super().__init__(["true"], env=env, **options)


def test_an_error_shows_no_password() -> None:
    outcome = call(flow_arguments("fit", TWO_MOONS, trainer__loger__tracking_uri=ADDRESS))
    assert outcome.code == 2
    assert SECRET not in outcome.err


def test_an_address_without_its_password_is_refused_with_where_to_give_it() -> None:
    with pytest.raises(UserError, match=r"lacks its password.*MLFLOW_TRACKING_PASSWORD"):
        Tracker(tracking_uri="http://me:***@host:5000")


def test_a_comparison_records_and_lists_no_password(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump({"trainer": {"logger": {"init_args": {"tracking_uri": ADDRESS}}}})
    )
    options = {"trainer.logger.init_args.tracking_uri": ADDRESS}
    plan = Plan({"a": Task([str(tmp_path / "task.yaml")])}, {"b": Method([], options)}, tracking=False)
    assert SECRET not in str(plan.definition())
    assert SECRET not in shlex.join(list_commands(plan, tmp_path / "out"))
    (job,) = plan.jobs(tmp_path / "out")
    assert any(ADDRESS in word for word in job.command())  # which needs it
