"""One-step models from the command line: training, evaluation, files, and as the first stage of an occupancy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import load_dynamics, load_occupancy
from tests.cli.support import CONF, MAZE_LOOP, Outcome, call, dynamics_arguments, occupancy_arguments
from tests.cli.test_occupancies import data, last_of  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("without_figures")

TASKS = sorted((CONF / "dynamics").glob("*.yaml"))
EXPANSION = CONF / "occupancy" / "presets" / "expansion.yaml"


def command(name: str, folder: Path, config: Path, **changes: object) -> Outcome:
    outcome = call(dynamics_arguments(name, config, trainer__default_root_dir=folder, **changes))
    assert (outcome.code, outcome.err) == (0, "")
    return outcome


@pytest.fixture(scope="module")
def trained(data: Callable[[str], Path], tmp_path_factory) -> tuple[Path, Outcome]:  # noqa: F811
    """Folder of a run in the maze, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, command("fit", folder, CONF / "dynamics" / "maze.yaml", data__path=data("maze"))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_trains_and_ends_with_its_errors(path: Path, data, tmp_path: Path) -> None:  # noqa: F811
    outcome = command("fit", tmp_path, path, data__path=data(path.stem))
    copies = "eval_copies" in yaml.safe_load(path.read_text())["data"]["init_args"]
    measured = ["dynamics"] * (2 if copies else 1)
    assert outcome.last_words == ["loss", *measured, "checkpoint", "checkpoint", "figure", "figure"]
    assert (tmp_path / "figures" / "dynamics.png").exists()
    saved = torch.load(last_of(tmp_path), weights_only=True)
    assert saved["global_step"] == saved["OfflineData"]["drawn"] == 6
    model = load_dynamics(last_of(tmp_path))
    step = model.step(np.zeros((4, 2, len(model.columns))), np.zeros((4, 2, saved["hyper_parameters"]["action_dim"])))
    assert step.arrival.shape == (4, 2, len(model.columns))
    assert step.spread.shape == step.terminal.shape == (4, 2)
    with pytest.raises(UserError, match=r"a checkpoint of a one-step model.*load_dynamics"):
        load_occupancy(last_of(tmp_path))


def test_a_test_of_the_checkpoint_repeats_the_end_of_training(trained, data, tmp_path: Path) -> None:  # noqa: F811
    folder, fit = trained
    config = CONF / "dynamics" / "maze.yaml"
    test = command("test", tmp_path, config, data__path=data("maze"), ckpt_path=last_of(folder))

    def results(outcome: Outcome) -> list[str]:
        return [line for line in outcome.out.splitlines() if line.startswith(("loss", "dynamics"))]

    assert len(results(fit)) == 2
    assert results(test) == results(fit)


def test_predictions_are_steps_from_the_states_of_a_test(trained, data, tmp_path: Path) -> None:  # noqa: F811
    config = CONF / "dynamics" / "maze.yaml"
    outcome = command("predict", tmp_path, config, data__path=data("maze"), ckpt_path=last_of(trained[0]))
    assert outcome.out == f"3 samples in {tmp_path / 'samples.csv'}\n"
    table = pd.read_csv(tmp_path / "samples.csv")
    states = ["x", "y", "vx", "vy"]
    sources = [f"source_{name}" for name in states]
    assert list(table) == [*states, *sources, "action_0", "action_1"]
    step = load_dynamics(last_of(trained[0])).step(
        table[sources].to_numpy(), table[["action_0", "action_1"]].to_numpy()
    )
    np.testing.assert_allclose(table[states].to_numpy(), step.arrival, atol=1e-5)


def test_an_occupancy_uses_the_model_of_the_checkpoint(trained, data, tmp_path: Path) -> None:  # noqa: F811
    place = "model__segments__init_args__checkpoint"
    options: dict[str, Any] = {"data__path": data("maze"), "trainer__default_root_dir": tmp_path}
    outcome = call(occupancy_arguments("fit", MAZE_LOOP, EXPANSION, **options, **{place: last_of(trained[0])}))
    assert outcome.code == 0, outcome.err
    assert "unexplained" not in outcome.err  # nothing was trained
    held = torch.load(last_of(tmp_path), weights_only=True)["state_dict"]
    for name, weight in torch.load(last_of(trained[0]), weights_only=True)["state_dict"].items():
        assert torch.equal(held[name], weight), name


@pytest.mark.parametrize("case", ["missing", "other data"])
def test_a_model_that_does_not_fit_is_refused_before_anything_runs(case, trained, data, tmp_path) -> None:  # noqa: F811
    place = "model__segments__init_args__checkpoint"
    path = tmp_path / "nowhere.ckpt" if case == "missing" else last_of(trained[0])
    config = MAZE_LOOP if case == "missing" else CONF / "occupancy" / "linear_gaussian.yaml"
    source = data("maze" if case == "missing" else "linear_gaussian")
    options: dict[str, Any] = {"data__path": source, "trainer__default_root_dir": tmp_path / "run"}
    outcome = call(occupancy_arguments("fit", config, EXPANSION, **options, **{place: path}))
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert ("there is no checkpoint" if case == "missing" else "this data set has (s0, s1)") in outcome.err
    assert not (tmp_path / "run").exists()
