"""Checkpoints and folders of strangers on the command line, and how users let files name their own classes."""

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowmatch_rl.experiments.plan import Method, Plan, Task
from tests.cli.support import (
    MAZE_LOOP,
    PENDULUM,
    TWO_MOONS,
    Outcome,
    arguments,
    call,
    flow_arguments,
    occupancy_arguments,
)
from tests.conftest import EVIL
from tests.data.toy_trajectories import trajectory_store
from tests.strangers import ATTACKS, flow_content, occupancy_content, policy_content

pytestmark = pytest.mark.usefixtures("without_figures")

COMMANDS = ("fit", "test", "predict")
KINDS = {
    "flow": (flow_content, flow_arguments, TWO_MOONS),
    "occupancy": (occupancy_content, occupancy_arguments, MAZE_LOOP),
    "policy": (policy_content, arguments, PENDULUM),
}


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    assert len(outcome.error_lines) == 1, outcome.err
    assert all(word in outcome.err for word in words), outcome.err


@pytest.mark.parametrize(
    ("attack", "kind", "command"),
    [
        (attack, *turn)
        for attack, turn in zip(ATTACKS, itertools.cycle(itertools.product(KINDS, COMMANDS)), strict=False)
    ],
)
def test_nothing_that_a_checkpoint_names_is_run(attack: str, kind: str, command: str, marker: Path, tmp_path) -> None:
    content, given, config = KINDS[kind]
    poisoned = content()
    ATTACKS[attack](poisoned, marker)
    torch.save(poisoned, tmp_path / "stranger.ckpt")
    run = {"ckpt_path": tmp_path / "stranger.ckpt", "trainer__default_root_dir": tmp_path / "run"}
    assert_refused(call(given(command, config, **run)), "stranger.ckpt")
    assert not marker.exists()
    assert EVIL not in sys.modules
    assert not (tmp_path / "run").exists()


def test_predictions_from_a_checkpoint_alone_run_nothing_that_it_names(marker: Path, tmp_path: Path) -> None:
    for name, poison in ATTACKS.items():
        poisoned = flow_content()
        poison(poisoned, marker)
        torch.save(poisoned, tmp_path / "stranger.ckpt")
        outcome = call(["predict", f"--ckpt_path={tmp_path / 'stranger.ckpt'}", f"--samples.path={tmp_path / 'a.csv'}"])
        assert_refused(outcome, "stranger.ckpt")
        assert not marker.exists(), name
        assert EVIL not in sys.modules, name


def test_an_address_of_a_checkpoint_is_refused() -> None:
    for command in ("fit", "test", "predict"):
        outcome = call(flow_arguments(command, TWO_MOONS, ckpt_path="http://127.0.0.1:9/stranger.ckpt"))
        assert_refused(outcome, "is an address; download the checkpoint")


def test_a_run_in_a_comparison_does_not_run_what_its_checkpoint_names(marker: Path, tmp_path: Path) -> None:
    plan = Plan({"moons": Task([str(TWO_MOONS)])}, {"plain": Method([])}, tracking=False)
    (job,) = plan.jobs(tmp_path / "out")
    poisoned = flow_content()
    ATTACKS["class of a part"](poisoned, marker)
    job.last.parent.mkdir(parents=True)
    torch.save(poisoned, job.last)
    assert_refused(call(job.command()[3:]), "last.ckpt", EVIL)
    assert not marker.exists()


def reward(module: str) -> dict[str, Any]:
    return {
        "class_path": "flowmatch_rl.testbeds.FunctionReward",
        "init_args": {"function": f"{module}:first", "columns": ["time"]},
    }


def rewarded(module: str) -> str:
    return f"--model.rewards={json.dumps({'mine': reward(module)})}"


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Checkpoints of an occupancy, each with a reward in a module of the user's own that has not been imported."""
    monkeypatch.syspath_prepend(tmp_path)
    trajectory_store(tmp_path / "toy")
    outcome = occupancy_of_toy("fit", tmp_path)
    assert outcome.code == 0, outcome.err
    content = torch.load(tmp_path / "fit" / "checkpoints" / "last.ckpt", weights_only=True)
    paths = {}
    for module in ("my_unnamed", "my_named", "my_allowed"):
        (tmp_path / f"{module}.py").write_text("def first(values):\n    return values[..., 0]\n")
        content["hyper_parameters"]["rewards"] = {"mine": reward(module)}
        paths[module] = tmp_path / f"{module}.ckpt"
        torch.save(content, paths[module])
    yield paths
    for module in paths:
        sys.modules.pop(module, None)


def occupancy_of_toy(command: str, folder: Path, *more: str, **changes: object) -> Outcome:
    options = {"data__path": folder / "toy", "model__horizon__discount": 0.5}
    options |= {"trainer__default_root_dir": folder / command} | changes
    (folder / "toy.yaml").write_text("model: {class_path: OccupancyModule}\ndata: {class_path: OfflineData}\n")
    command, file, *given = occupancy_arguments(command, folder / "toy.yaml", **options)
    return call([command, file, *more, *given])


def test_rewards_of_a_users_own_are_used_where_the_user_names_or_allows_them(trained, tmp_path: Path) -> None:
    refused = occupancy_of_toy("test", tmp_path, ckpt_path=trained["my_unnamed"])
    assert_refused(refused, "the reward 'mine'", "my_unnamed:first", "allow_imports")
    samples = occupancy_of_toy("predict", tmp_path, ckpt_path=trained["my_unnamed"])
    assert samples.code == 0, samples.err
    assert "my_unnamed" not in sys.modules
    for module, option in (("my_named", rewarded("my_named")), ("my_allowed", "--allow_imports=[my_allowed]")):
        outcome = occupancy_of_toy("test", tmp_path, option, ckpt_path=trained[module])
        assert outcome.code == 0, outcome.err
        assert "mine" in outcome.out
