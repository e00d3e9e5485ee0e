"""Data sets, checkpoints and parts that do not fit an occupancy: one line, and nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.data import TransitionStore
from tests.cli.support import CONF, MAZE_LOOP, TWO_MOONS, Outcome, call, collect, flow_arguments, occupancy_arguments
from tests.combinations import one_test
from tests.data.toy_trajectories import End, trajectory_store

pytestmark = pytest.mark.usefixtures("without_figures")

PRESETS = CONF / "occupancy" / "presets"
CONSTANT: dict[str, Any] = {"policy": "ConstantPolicy", "policy__init_args__action": "[0.5]"}
UNSTATED: dict[str, object] = {
    "model__network": None,
    "model__network__init_args__hidden_dim": None,
    "model__network__init_args__num_blocks": None,
    "model__likelihood__solver__init_args__num_steps": None,
}
"""Leaves the model's sizes to the checkpoint."""


def rewards(name: str, **init_args: object) -> str:
    return json.dumps({"mine": {"class_path": name, "init_args": init_args}})


def not_a_number(values: Tensor) -> Tensor:
    return values[..., 0] * torch.nan


def nowhere_right(values: Tensor) -> Tensor:
    """Not a number but next to 0, where the mean state is."""
    return torch.where(values[..., 0].abs() < 0.1, 0.0, torch.nan)


def out_of_bounds(values: Tensor) -> Tensor:
    return values[..., 7]


def function(chosen: Callable[[Tensor], Tensor]) -> dict[str, object]:
    name = f"{__name__}:{chosen.__name__}"
    return {"model__init_args__rewards": rewards("FunctionReward", function=name, columns=["x"])}


@pytest.fixture(scope="module")
def maze(tmp_path_factory) -> Path:
    return collect(tmp_path_factory.mktemp("data") / "maze", "maze")


@pytest.fixture(scope="module")
def given(maze, tmp_path_factory) -> Path:
    """Checkpoint of a run of the loop in the maze."""
    folder = tmp_path_factory.mktemp("given")
    outcome = fit(maze, folder)
    assert outcome.code == 0, outcome.err
    return folder / "checkpoints" / "last.ckpt"


def fit(data: Path, folder: Path, *configs: Path, command: str = "fit", **changes: object) -> Outcome:
    """A run of the loop in the maze."""
    options = {"data__path": data, "trainer__default_root_dir": folder} | changes
    return call(occupancy_arguments(command, *(configs or (MAZE_LOOP,)), **options))


def fit_toy(folder: Path, ordered: bool = True, trajectories: list[tuple[int, End]] | None = None, **changes: object):
    """A run, without environment, on trajectories of two columns and one action."""
    more = {} if trajectories is None else {"trajectories": trajectories}
    trajectory_store(folder / "toy", ordered=ordered, **more)
    options = {
        "data__path": folder / "toy",
        "trainer__default_root_dir": folder / "run",
        "model__horizon__discount": 0.5,
    }
    options |= {f"model__{name}": value for name, value in changes.items()}
    return call(["fit", "--model=OccupancyModule", "--data=OfflineData", *occupancy_arguments("fit", **options)[1:]])


def assert_refused(outcome: Outcome, *words: str, code: int = 2, hint: str | None = None) -> None:
    assert outcome.code == code, outcome.err
    assert len(outcome.error_lines) == (1 if hint is None else 2), outcome.err
    assert all(word in outcome.err for word in words), outcome.err
    assert hint is None or f"did you mean '{hint}'" in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["shuffled table without next actions", "policy"]),
        (
            CONSTANT | {"segments": {"class_path": "ObservedSteps", "init_args": {"num_steps": 3}}},
            ["num_steps 3", "shuffled table"],
        ),
        ({"objective": "MonteCarloCFM"}, ["MonteCarloCFM", "shuffled table"]),
    ],
    ids=["next actions", "steps", "monte carlo"],
)
def test_table_without_what_the_method_needs_is_refused(changes, words, tmp_path) -> None:
    assert_refused(fit_toy(tmp_path, ordered=False, **changes), *words)


def test_trajectories_too_short_for_the_method_are_refused(maze, tmp_path) -> None:
    outcome = fit(maze, tmp_path / "run", PRESETS.parent / "maze_loop.yaml", PRESETS / "monte_carlo.yaml")
    assert_refused(outcome, str(maze), "no trajectory long enough", "discount 0.99", "299 steps")
    outcome = fit_toy(tmp_path, trajectories=[(1, "truncated")])
    assert_refused(outcome, "no trajectory long enough", "an action must follow")


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__horizon__discount": 1.0}, ["discount", "[0, 1)", "1.0"]),
        ({"model__horizon__consistency": 0.25}, ["consistency of horizons needs min_discount"]),
        ({"model__columns": "[]"}, ["columns", "at least one"]),
        ({"model__columns": "[x, x]"}, ["columns", "different", "['x', 'x']"]),
        ({"model__columns": "[lost]"}, ["no column 'lost'", "x, y, vx, vy"]),
        ({"model__columns": "[x, y]"}, ["'loop'", "'vx', 'vy'", "holds x, y"]),
        ({"model__init_args__objective": "TD2DD"}, ["noise", "t_min must be above 0"]),
        ({"model__sampler": "SdeSampler"}, ["deterministic", "SdeSampler"]),
        ({"model__tests__discounts": "[0.5, 0.99]"}, ["tests.discounts: this model has the discount 0.99", "0.5"]),
        ({f"model__{name}": value for name, value in CONSTANT.items()}, ["dimension 2", "ConstantPolicy gives 1"]),
        (
            {"model__policy": "LinearPolicy", "model__policy__init_args__gain": "[[1, 0], [0, 1]]"},
            ["LinearPolicy cannot act", "4 entries (x, y, vx, vy)"],
        ),
        ({"data__eval_steps": 100}, ["eval_steps 100", "37%", "discount 0.99", "at least 299"]),
        (
            {"data__environment__init_args__process": "RingProcess"},
            ["ring has 2 columns (x, y)", "4 columns (x, y, vx"],
        ),
        ({"model__init_args__rewards": rewards("SpeedReward", columns=["z"])}, ["'mine'", "'z'", "x, y, vx, vy"]),
        (function(not_a_number), ["'mine'", "finite", "nan"]),
        (function(out_of_bounds), ["'mine'", "fails", "index 7"]),
    ],
    ids=lambda value: None if isinstance(value, list) else " ".join(str(name).rpartition("__")[2] for name in value),
)
def test_parts_that_do_not_go_together_are_refused(changes, words, maze, tmp_path) -> None:
    assert_refused(fit(maze, tmp_path / "run", **changes), *words)
    assert not (tmp_path / "run").exists()


@one_test
@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"model__init_args__objective": "TD2CFN"}, "TD2CFM"),
        ({"model__policy": "MazeLopPolicy"}, "MazeLoopPolicy"),
        ({**UNSTATED, "model__network": "VelocityArchitectur"}, "VelocityArchitecture"),
        ({"model__init_args__rewards": rewards("SpedReward")}, "SpeedReward"),
        ({"model__init_args__rewards": rewards("SpeedReward", scal=1.0)}, "scale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_misspelt_class_is_named_with_the_one_that_was_meant(changes, hint, maze, tmp_path) -> None:
    assert_refused(fit(maze, tmp_path / "run", **changes), hint=hint)


def test_reward_named_twice_is_refused_with_its_file(maze, tmp_path) -> None:
    reward = "{class_path: SpeedReward, init_args: {scale: 0.4}}"
    (tmp_path / "more.yaml").write_text(
        f"model:\n  class_path: OccupancyModule\n  init_args: {{rewards: {{mine: {reward}, mine: {reward}}}}}\n"
    )
    outcome = fit(maze, tmp_path / "run", MAZE_LOOP, tmp_path / "more.yaml")
    assert_refused(outcome, str(tmp_path / "more.yaml"), "line 3", "'mine' is given twice")


def test_environment_of_a_library_with_other_dimensions_is_refused(maze, tmp_path) -> None:
    changes = {"data__environment": "GymnasiumEnvironment", "data__environment__init_args__name": "Pendulum-v1"}
    outcome = fit(maze, tmp_path / "run", **changes)
    assert_refused(outcome, "Pendulum-v1 has 3 columns", "the data set 4 columns (x, y, vx, vy) and dimension 2")


def test_folder_that_is_no_whole_data_set_is_refused_by_name(maze, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "half.partial").mkdir()
    (tmp_path / "half.partial" / "progress.json").write_text('{"rows_written": 30}')
    for name, words in {
        "nowhere": ["no data set"],
        "other": ["is not a data set"],
        "half": ["is not finished", "30 rows", "run the command that made it again"],
    }.items():
        assert_refused(fit(tmp_path / name, tmp_path / "run"), str(tmp_path / name), *words)
    assert not (tmp_path / "run").exists()


def test_collection_that_cannot_begin_leaves_no_folder(given, tmp_path) -> None:
    for policy, words in (
        (CONSTANT, ["dimension 2", "ConstantPolicy gives 1"]),
        (
            {"policy": "CheckpointPolicy", "policy__init_args__path": given},
            [str(given), "a checkpoint of an occupancy, not of a policy"],
        ),
        ({"policy": "CheckpointPolicy", "policy__init_args__path": "no.ckpt"}, ["no checkpoint 'no.ckpt'"]),
    ):
        options = [f"--{name.replace('__', '.')}={value}" for name, value in policy.items()]
        more = [f"--output={tmp_path / 'out'}", "--num_transitions=10", "--num_envs=2", "--progress=false"]
        assert_refused(call(["collect", f"-c={CONF / 'collect' / 'maze.yaml'}", *options, *more]), *words)
    assert list(tmp_path.iterdir()) == []


def test_data_without_trajectories_to_evaluate_on_train_to_the_end(tmp_path) -> None:
    outcome = fit_toy(tmp_path, ordered=False, **CONSTANT)
    assert outcome.code == 0, outcome.err
    assert [file.name for file in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("trajectories", [[(30, "truncated")], [(3, "truncated")], [(1, "terminated")]], ids=str)
def test_smallest_data_sets_train(trajectories, tmp_path) -> None:
    outcome = fit_toy(tmp_path, trajectories=trajectories)
    assert outcome.code == 0, outcome.err


@one_test
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__horizon__discount": 0.9}, ["discount 0.99", "0.9"]),
        ({"model__horizon__min_discount": 0.9}, ["min_discount None", "0.9"]),
        ({"model__columns": "[y, x, vx, vy]"}, ["columns None", "['y', 'x', 'vx', 'vy']"]),
        ({"model__policy": "MazeGoalPolicy"}, ["checkpoint does not fit", "network"]),
    ],
    ids=["discount", "horizons", "columns", "embedding"],
)
@pytest.mark.parametrize("command", ["test", "predict"])
def test_checkpoint_of_another_occupancy_is_refused(command, changes, words, maze, given, tmp_path) -> None:
    outcome = fit(maze, tmp_path / "run", command=command, ckpt_path=given, **(UNSTATED | changes))
    assert_refused(outcome, *words)


def test_checkpoint_of_other_columns_is_refused_and_kept(tmp_path) -> None:
    assert fit_toy(tmp_path).code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before, info = checkpoint.read_bytes(), tmp_path / "toy" / "dataset.json"
    info.write_text(info.read_text().replace('"trajectory"', '"path"'))
    (tmp_path / "toy" / "SHA256SUMS").unlink()
    assert TransitionStore.open(tmp_path / "toy").info.columns == ("path", "time")
    options = {"data__path": tmp_path / "toy", "trainer__default_root_dir": tmp_path / "again", "ckpt_path": checkpoint}
    args = ["fit", "--model=OccupancyModule", "--data=OfflineData", *occupancy_arguments("fit", **options)[1:]]
    assert_refused(call([*args, "--model.horizon.discount=0.5"]), "(trajectory, time)", "(path, time)")
    assert checkpoint.read_bytes() == before


def test_reward_that_fails_in_future_states_ends_a_test_in_one_line(maze, given, tmp_path) -> None:
    changes = UNSTATED | function(nowhere_right)
    outcome = fit(maze, tmp_path / "run", command="test", ckpt_path=given, **changes)
    assert_refused(outcome, "'mine'", "not finite", "of 3 source states", code=1)


def test_loss_that_explodes_ends_the_run_in_one_line_and_keeps_no_broken_checkpoint(maze, tmp_path) -> None:
    outcome = fit(maze, tmp_path / "run", model__optimizer__learning_rate=1e30)
    assert_refused(outcome, "not finite", "lower the learning rate", code=1)
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_prediction_replaces_no_file(maze, given, tmp_path) -> None:
    (tmp_path / "samples.csv").write_text("precious")
    outcome = fit(maze, tmp_path, command="predict", ckpt_path=given, **UNSTATED)
    assert_refused(outcome, "samples.csv exists", code=1)
    assert (tmp_path / "samples.csv").read_text() == "precious"


def test_other_models_refuse_its_checkpoint(given, tmp_path) -> None:
    outcome = call(flow_arguments("test", TWO_MOONS, ckpt_path=given, trainer__default_root_dir=tmp_path / "run"))
    assert_refused(outcome, "OccupancyModule", "SampleData")
