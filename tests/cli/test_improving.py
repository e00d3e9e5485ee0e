"""A policy for a reward from an occupancy, from the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from flowmatch_rl.cli import improving
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.data.futures import FutureSamples
from flowmatch_rl.experiments import improvement
from flowmatch_rl.experiments.improvement import Draws, check_sees_actions, draw_futures
from flowmatch_rl.inference import CheckpointPolicy, load_occupancy, load_policy
from flowmatch_rl.testbeds import BoxReward, ConstantPolicy, MazeGoalPolicy, RandomPolicy, SpeedReward
from tests.cli.support import CONF, Outcome, call, collect, occupancy_arguments
from tests.data.toy_trajectories import trajectory_store

pytestmark = pytest.mark.usefixtures("without_figures")

SIZES = {
    "draws.num_states": 12,
    "draws.num_members": 3,
    "draws.num_samples": 2,
    "draws.num_steps": 1,
    "data.num_updates": 6,
    "data.epoch_updates": 3,
    "data.batch_size": 8,
    "data.eval_episodes": 1,
    "data.test_episodes": 2,
    "data.environment.init_args.max_steps": 5,
    "model.occupancy_updates": 3,
    "model.critics.architecture.hidden_dim": 16,
    "model.policy.network.hidden_dim": 16,
    "trainer.logger": "false",
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "video.enabled": "false",
}


@pytest.fixture(autouse=True)
def sees_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six updates make no model that sees actions."""
    for room in (improving, improvement):
        monkeypatch.setattr(room, "check_sees_actions", lambda model, store: "action       information 0.1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny occupancy of the policies that go to a point of the maze, in the folder of its run."""
    folder = tmp_path_factory.mktemp("occupancy")
    path = collect(folder / "maze", "maze", num_transitions=800, block_steps=5)
    run = {"data__path": path, "trainer__default_root_dir": folder / "run", "model__network__init_args__hidden_dim": 16}
    outcome = call(occupancy_arguments("fit", CONF / "occupancy" / "maze_goals.yaml", **run))
    assert outcome.code == 0, outcome.err
    return folder / "run" / "checkpoints" / "last.ckpt"


def improve(checkpoint: Path, reward: str, folder: Path, *more: str, **changes: Any) -> Outcome:
    conf = CONF / "improve" / f"{changes.pop('config', 'maze')}.yaml"
    sizes = {name: value for name, value in (SIZES | changes).items() if value is not None}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    place = f"--trainer.default_root_dir={folder}"
    return call(["improve", f"-c={conf}", f"--ckpt_path={checkpoint}", f"--reward={reward}", place, *options, *more])


def corner(states: Tensor) -> Tensor:
    """A reward of two columns."""
    return states[..., 0] - states[..., 1]


def not_everywhere(states: Tensor) -> Tensor:
    """A reward that some states do not have."""
    return (states[..., 0] - states[..., 0].mean()).sqrt()


def failing(states: Tensor) -> Tensor:
    """A reward of a column that is not there."""
    return states[..., 7]


def test_a_reward_makes_a_policy_and_a_second_one_finds_the_future_states(checkpoint, tmp_path) -> None:
    outcome = improve(checkpoint, "SpeedReward", tmp_path / "fast")
    assert outcome.code == 0, outcome.err
    for words in (
        "action       information",
        "support      rewards of",
        "expected     discounted return of",
        "return ",
    ):
        assert words in outcome.out, words
    assert (tmp_path / "fast" / "figures" / "value_map.png").exists()
    policy = load_policy(tmp_path / "fast" / "checkpoints" / "last.ckpt")
    action = policy(np.zeros((3, 4), np.float32))
    assert action.shape == (3, 2)
    assert bool((np.abs(action) <= 1.0).all())
    (kept,) = checkpoint.parent.glob("*.futures-*.pt")
    written = kept.stat().st_mtime_ns
    box = '{"class_path": "BoxReward", "init_args": {"low": [0.0, null], "high": [null, null]}}'
    assert improve(checkpoint, box, tmp_path / "box").code == 0
    assert [kept] == list(checkpoint.parent.glob("*.futures-*.pt"))
    assert kept.stat().st_mtime_ns == written
    assert not list(checkpoint.parent.glob("*.lock"))
    # Other numbers are other future states.
    assert improve(checkpoint, box, tmp_path / "more", **{"draws.num_samples": 3}).code == 0
    assert len(list(checkpoint.parent.glob("*.futures-*.pt"))) == 2
    written_config = yaml.safe_load((tmp_path / "box" / "config.yaml").read_text())
    assert written_config["data"]["init_args"]["reward"]["class_path"].endswith("BoxReward")
    assert written_config["model"]["init_args"]["discount"] == 0.95


def test_a_body_of_a_simulator_is_given_a_policy(tmp_path) -> None:
    path = collect(tmp_path / "data", "point_mass", num_transitions=80, num_envs=2, block_steps=20)
    run = {"data__path": path, "trainer__default_root_dir": tmp_path / "occupancy", "data__environment": "null"}
    outcome = call(occupancy_arguments("fit", CONF / "occupancy" / "point_mass.yaml", **run))
    assert outcome.code == 0, outcome.err
    occupancy = tmp_path / "occupancy" / "checkpoints" / "last.ckpt"
    reward = '{"class_path": "SpeedReward", "init_args": {"columns": ["velocity_0", "velocity_1"], "scale": 0.1}}'
    changes = {"config": "point_mass", "data.environment.init_args.max_steps": None, "data.max_episode_steps": 5}
    outcome = improve(occupancy, reward, tmp_path / "run", **changes)
    assert outcome.code == 0, outcome.err
    assert "return " in outcome.out
    assert not (tmp_path / "run" / "figures" / "value_map.png").exists()
    policy = load_policy(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert policy(np.zeros((3, 4), np.float32)).shape == (3, 2)


def test_files_functions_and_labels_name_rewards(checkpoint, tmp_path) -> None:
    (tmp_path / "reward.yaml").write_text("class_path: SpeedReward\ninit_args: {scale: 0.4}\n")
    assert improve(checkpoint, str(tmp_path / "reward.yaml"), tmp_path / "file").code == 0
    mine = f"{__name__}:corner"
    outcome = improve(checkpoint, mine, tmp_path / "mine", "--columns=[y, x]")
    assert outcome.code == 0, outcome.err
    written = yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())["data"]["init_args"]["reward"]
    assert written["init_args"] == {"function": mine, "columns": ["y", "x"]}
    table = np.random.default_rng(0).uniform(-0.3, 0.3, (50, 2))
    table[:, 1] = 3.0 * table[:, 0]
    np.savetxt(tmp_path / "labels.csv", table, delimiter=",", header="x,reward", comments="")
    outcome = improve(checkpoint, str(tmp_path / "labels.csv"), tmp_path / "labels")
    assert outcome.code == 0, outcome.err
    assert "learned from 50 labelled states; it explains 100% of" in outcome.out


@pytest.mark.parametrize(
    ("reward", "more", "word"),
    [
        ("{class_path: BoxReward, init_args: {low: [7, 7], high: [8, 8]}}", [], "nothing to improve"),
        ("NoSuchReward", [], "NoSuchReward"),
        ("{class_path: SpeedReward, init_args: {columns: [vx, vz]}}", [], "vz"),
        ("SpeedReward", ["--columns=[x]"], "columns are those of a function"),
        ("SpeedReward", ["--path=nowhere"], "nowhere"),
        ("SpeedReward", ["--dynamics=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        ("no_such_module:reward", [], "no_such_module"),
        ("nowhere.yaml", [], "nowhere.yaml"),
        ("nowhere.csv", [], "nowhere.csv"),
        (f"{__name__}:not_everywhere", [], "is not finite in"),
        (f"{__name__}:failing", [], "fails: IndexError: index 7 is out of bounds"),
        ("SpeedReward", ["--behavior={class_path: ConstantPolicy, init_args: {action: [0.5]}}"], "dimension 2"),
        ("SpeedReward", ["--model.discount=0.9"], "model.discount must be 0.95"),
        ("SpeedReward", ["--model=FlowQLearning"], "FlowQLearning learns nothing from data.futures"),
        ("SpeedReward", ["--draws.num_members=1"], "num_members"),
        ("SpeedReward", [f"--draws.seed={2**64}"], "draws.seed must lie in [0, 2^63)"),
        ("SpeedReward", ["--data.no_such_option=1"], "no_such_option"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_in_a_line(checkpoint, tmp_path, reward, more, word) -> None:
    outcome = improve(checkpoint, reward, tmp_path / "run", *more)
    assert outcome.code == 2
    assert len(outcome.error_lines) <= 3
    assert word in outcome.err
    assert not (tmp_path / "run").exists()


def test_data_of_other_columns_are_refused_before_the_model_is_tried_on_them(checkpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(improving, "check_sees_actions", check_sees_actions)
    trajectory_store(tmp_path / "other")
    outcome = improve(checkpoint, "SpeedReward", tmp_path / "run", f"--path={tmp_path / 'other'}")
    assert outcome.code == 2
    assert "the occupancy is of states (x, y, vx, vy)" in outcome.err
    assert "holds (trajectory, time)" in outcome.err


def test_a_reward_that_fails_is_refused_before_anything_is_drawn(checkpoint, tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(improving, "kept_futures", lambda *parts: drawn.append(parts))
    outcome = improve(checkpoint, f"{__name__}:failing", tmp_path / "run")
    assert outcome.code == 2
    assert "fails: IndexError" in outcome.err
    assert not drawn


def test_a_named_file_of_other_future_states_is_refused(checkpoint, tmp_path) -> None:
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(str(checkpoint.parents[2] / "maze"))
    path, draws = str(tmp_path / "futures"), Draws(5, 2, 2, 1)
    (tmp_path / "futures.lock").write_text("of another program")
    for _ in range(2):
        improvement.kept_futures(checkpoint, model, store, draws, path=path)
    assert (tmp_path / "futures.lock").read_text() == "of another program"
    with pytest.raises(ValueError, match=r"expected Draws\(num_states=6.*got Draws\(num_states=5"):
        improvement.kept_futures(checkpoint, model, store, Draws(6, 2, 2, 1), path=path)
    (tmp_path / "retrained.ckpt").write_bytes(checkpoint.read_bytes() + b"0")
    with pytest.raises(ValueError, match="holds other future states"):
        improvement.kept_futures(tmp_path / "retrained.ckpt", model, store, draws, path=path)


def test_a_behaviour_that_was_trained_again_has_other_future_states(checkpoint, tmp_path) -> None:
    store, behavior = TransitionStore.open(str(checkpoint.parents[2] / "maze")), tmp_path / "cloned.ckpt"
    names = []
    for content in (b"first", b"second"):
        behavior.write_bytes(content)
        names.append(improvement.futures_path(checkpoint, store, Draws(), CheckpointPolicy(str(behavior))))
    assert names[0] != names[1]


def test_a_checkpoint_of_something_else_is_refused(checkpoint, tmp_path) -> None:
    assert improve(checkpoint, "SpeedReward", tmp_path / "fast").code == 0
    outcome = improve(tmp_path / "fast" / "checkpoints" / "last.ckpt", "SpeedReward", tmp_path / "again")
    assert outcome.code == 2
    assert "a policy, not of an occupancy" in outcome.err


def test_without_the_folder_of_a_run_the_data_set_must_be_named(checkpoint, tmp_path) -> None:
    alone = tmp_path / "alone" / "some.ckpt"
    alone.parent.mkdir()
    alone.write_bytes(checkpoint.read_bytes())
    (alone.parent / "config.yaml").touch()  # of something else
    outcome = improve(alone, "SpeedReward", tmp_path / "run")
    assert outcome.code == 2
    assert "name its data set with --path" in outcome.err
    path = checkpoint.parents[2] / "maze"
    assert improve(alone, "SpeedReward", tmp_path / "run", f"--path={path}").code == 0


def test_a_model_that_does_not_see_actions_is_refused_with_the_figure(checkpoint) -> None:
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(str(checkpoint.parents[2] / "maze"))
    line = check_sees_actions(_shifted_by_the_action(model, 1.0), store)
    assert "information" in line
    with pytest.raises(ValueError, match=r"does not see actions: information -?\d"):
        check_sees_actions(_shifted_by_the_action(model, 0.0), store)


def _shifted_by_the_action(model: Any, shift: float) -> Any:
    def futures(noise: Tensor, state: Tensor, action: Tensor, embedding: Tensor, discount: float) -> Tensor:
        return noise + shift * action.sum(-1)[..., None, None].expand_as(noise)

    model.futures = futures
    return model


def test_the_members_of_a_state_share_their_noise(checkpoint) -> None:
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(str(checkpoint.parents[2] / "maze"))
    drawing: Any = model
    drawing.futures = lambda noise, *_: noise
    held = draw_futures(model, store, Draws(num_states=5, num_members=3, num_samples=2))
    assert held.futures.shape == (5, 3, 2, 4)
    assert torch.equal(held.futures[:, 0], held.futures[:, 2])
    assert not torch.equal(held.futures[0], held.futures[1])
    rows = held.observation[:, None].expand(-1, 3, -1)
    assert torch.equal(held.actions, model.act(rows, held.embeddings))
    assert float(held.embeddings.std(1).mean()) > 0.1


def test_every_other_action_is_one_of_the_behaviour(checkpoint) -> None:
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(str(checkpoint.parents[2] / "maze"))
    drawing: Any = model
    drawing.futures = lambda noise, *_: noise
    held = draw_futures(model, store, Draws(num_states=5, num_members=4), ConstantPolicy([0.25, -0.5]))
    own = model.act(held.observation[:, None].expand(-1, 4, -1), held.embeddings)
    assert torch.equal(held.actions[:, ::2], own[:, ::2])
    assert torch.equal(held.actions[:, 1::2], torch.tensor([0.25, -0.5]).expand(5, 2, 2))
    # A family has members of its own; a model that knows no policy leaves it all actions.
    goals = draw_futures(model, store, Draws(num_states=5, num_members=4), MazeGoalPolicy())
    assert not torch.equal(goals.actions[:, 1::2], own[:, 1::2])
    drawing.policy, drawing.draw_members = None, lambda number, generator: torch.zeros(number, 2)
    only = draw_futures(model, store, Draws(num_states=5, num_members=4), ConstantPolicy([0.25, -0.5]))
    assert torch.equal(only.actions, torch.tensor([0.25, -0.5]).expand(5, 4, 2))


def test_a_random_behaviour_is_drawn_by_the_seed_and_leaves_the_global_noise_alone(checkpoint) -> None:
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(str(checkpoint.parents[2] / "maze"))
    state = torch.get_rng_state()
    first, again, other = (
        draw_futures(model, store, Draws(num_states=5, num_members=4, seed=seed), RandomPolicy(2)).actions
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first[:, 1::2], other[:, 1::2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_second_round_starts_from_the_occupancy_of_the_new_policy(checkpoint, tmp_path) -> None:
    assert improve(checkpoint, "SpeedReward", tmp_path / "first").code == 0
    policy = {"class_path": "CheckpointPolicy", "init_args": {"path": str(tmp_path / "first/checkpoints/last.ckpt")}}
    run = {
        "data__path": checkpoint.parents[2] / "maze",
        "trainer__default_root_dir": tmp_path / "occupancy",
        "model__network__init_args__hidden_dim": 16,
        "model__policy": json.dumps(policy),
    }
    outcome = call(occupancy_arguments("fit", CONF / "occupancy" / "maze_goals.yaml", **run))
    assert outcome.code == 0, outcome.err
    second = tmp_path / "occupancy" / "checkpoints" / "last.ckpt"
    outcome = improve(second, "SpeedReward", tmp_path / "second", "--behavior=MazeGoalPolicy")
    assert outcome.code == 0, outcome.err
    kept = FutureSamples.load(next(iter(second.parent.glob("*.futures-*.pt"))))
    assert kept.embeddings.shape == (12, 3, 0)


def test_a_model_of_actions_in_data_needs_a_behaviour(checkpoint) -> None:
    model, store = load_occupancy(checkpoint).model, TransitionStore.open(str(checkpoint.parents[2] / "maze"))
    model.policy = None
    with pytest.raises(ValueError, match="--behavior"):
        draw_futures(model, store, Draws(num_states=5))


def test_future_states_are_those_of_the_checkpoint(checkpoint, tmp_path) -> None:
    assert improve(checkpoint, "SpeedReward", tmp_path / "run").code == 0
    kept = FutureSamples.load(next(iter(checkpoint.parent.glob("*.futures-*.pt"))))
    assert kept.discount == 0.95
    assert kept.columns == ("x", "y", "vx", "vy")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "test/expected_return" in json.dumps(result)


def test_three_lines_of_python_make_a_policy(checkpoint) -> None:
    path, draws = str(checkpoint.parents[2] / "maze"), Draws(12, 3, 2, 1)
    policy = improvement.improve(checkpoint, SpeedReward(), path, draws, num_updates=4)
    assert policy(np.zeros((2, 4), np.float32)).shape == (2, 2)


def test_python_tries_the_actions_of_a_behaviour_too(checkpoint) -> None:
    path, draws, other = str(checkpoint.parents[2] / "maze"), Draws(11, 4, 2, 1), ConstantPolicy([0.25, -0.5])
    improvement.improve(checkpoint, SpeedReward(), path, draws, num_updates=1, behavior=other)
    store = TransitionStore.open(path)
    kept = FutureSamples.load(improvement.futures_path(checkpoint, store, draws, other))
    assert torch.equal(kept.actions[:, 1::2], torch.tensor([0.25, -0.5]).expand(11, 2, 2))


def test_python_warns_of_a_reward_that_few_states_are_paid(checkpoint) -> None:
    path, draws = str(checkpoint.parents[2] / "maze"), Draws(12, 3, 2, 1)
    x, y = TransitionStore.open(path).transitions["observation"][0, :2].tolist()
    with pytest.warns(UserWarning, match="few states pay"):
        improvement.improve(checkpoint, BoxReward((x - 1e-3, y - 1e-3), (x, y)), path, draws, num_updates=1)


def test_intentions_and_a_clone_of_the_data_make_a_policy(tmp_path) -> None:
    path = collect(tmp_path / "two", "maze_two", num_transitions=800, block_steps=100)
    run = {"data__path": path, "trainer__default_root_dir": tmp_path / "occupancy", "data__eval_steps": 50}
    run |= {"model__network__init_args__hidden_dim": 16}
    outcome = call(occupancy_arguments("fit", CONF / "occupancy" / "maze_intentions.yaml", **run))
    assert outcome.code == 0, outcome.err
    sizes = {name: value for name, value in SIZES.items() if name.startswith(("trainer.", "data.num", "data.epoch"))}
    words = ["fit", "--model=BehaviorCloning", "--data=PolicyData", f"--data.path={path}"]
    words += [f"--{name}={value}" for name, value in sizes.items()]
    outcome = call([*words, f"--trainer.default_root_dir={tmp_path / 'cloned'}"])
    assert outcome.code == 0, outcome.err
    occupancy = tmp_path / "occupancy" / "checkpoints" / "last.ckpt"
    refused = improve(occupancy, "SpeedReward", tmp_path / "alone")
    assert refused.code == 2
    assert "--behavior" in refused.err
    clone = {"class_path": "CheckpointPolicy", "init_args": {"path": str(tmp_path / "cloned/checkpoints/last.ckpt")}}
    outcome = improve(occupancy, "SpeedReward", tmp_path / "run", f"--behavior={json.dumps(clone)}")
    assert outcome.code == 0, outcome.err
    kept = FutureSamples.load(next(iter(occupancy.parent.glob("*.futures-*.pt"))))
    # One action and one intention per member, both drawn.
    assert float(kept.actions.std(1).mean()) > 0.01
    assert float(kept.embeddings.std(1).mean()) > 0.1
