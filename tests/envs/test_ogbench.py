"""Tasks of OGBench, and its oracles."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ogbench", reason="the extra ogbench is not installed")

from flowmatch_rl.checks import UserError
from flowmatch_rl.envs import NavigateOracle, NoisyOracle, OgbenchEnvironment, Oracle, PlayOracle, build_environment
from flowmatch_rl.envs.ogbench import TaskReward
from flowmatch_rl.envs.oracles import take_trajectory
from flowmatch_rl.envs.rendering import reason_without_backend
from tests.combinations import one_test

MAZE = OgbenchEnvironment("pointmaze-medium-v0", 3)
CUBE = OgbenchEnvironment("cube-single-v0", 4)


def put(env: Any, distance: float) -> None:
    """Put the point of a maze, or the first cube of a table, at a distance from the goal."""
    if hasattr(env, "cur_goal_xy"):
        env.set_xy(np.add(env.cur_goal_xy, [distance, 0.0]))
    else:
        env.data.joint("object_joint_0").qpos[:3] = env.data.mocap_pos[0] + [0.0, distance, 0.0]
        env.set_state(env.data.qpos.copy(), env.data.qvel.copy())


def steps_of(env: Any, number: int, distances: list[float]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """States that random steps begin in, their rewards, and whether they terminate; the goal is near now and then."""
    rng, rows = np.random.default_rng(0), []
    _, info = env.reset(seed=1)
    for step in range(number):
        if distances and step % 10 == 0:
            put(env.unwrapped, distances[step // 10 % len(distances)])
            env.step(np.zeros(env.action_space.shape))  # after which the environment knows where things are
        state = {"qpos": env.unwrapped.data.qpos.copy()}
        if "button_states" in info:
            state["button_states"] = info["button_states"].copy()
        _, reward, terminated, _, info = env.step(rng.uniform(-1.0, 1.0, env.action_space.shape))
        rows.append((state, reward, terminated))
    states = {name: np.stack([state[name] for state, _, _ in rows]) for name in rows[0][0]}
    return states, np.array([reward for _, reward, _ in rows]), np.array([ended for _, _, ended in rows])


@pytest.mark.parametrize(
    ("task", "distances", "levels"),
    [
        (MAZE, [1.1, 0.5], {-1.0, 0.0}),
        pytest.param(CUBE, [0.0, 0.1], {-1.0, 0.0}, marks=pytest.mark.slow),
        pytest.param(OgbenchEnvironment("scene-v0", 5), [], {-2.0}, marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "label", ""),
)
def test_reward_of_stored_states_is_that_of_the_environments_steps(task, distances, levels) -> None:
    states, rewards, terminated = steps_of(task.make_task(), 40, distances)
    assert set(rewards.tolist()) == levels
    assert set(terminated.tolist()) == {level == 0.0 for level in levels}
    stored, solved = TaskReward(task)(states)
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, rewards)
    np.testing.assert_array_equal(solved, terminated)


@pytest.mark.slow
def test_reward_of_a_puzzle_follows_its_buttons() -> None:
    task = OgbenchEnvironment("puzzle-3x3-v0", 1)
    trajectory = take_trajectory(PlayOracle(), PlayOracle().make(task), 200, 0)
    assert trajectory is not None
    env: Any = task.make_task()
    env.reset(seed=0)
    rewards, _ = TaskReward(task)(trajectory.arrays)
    assert len(np.unique(rewards)) > 1
    for row in range(0, 200, 20):
        states = [trajectory.arrays[name][row] for name in ("qpos", "qvel", "button_states")]
        env.unwrapped.set_state(*states)
        assert env.step(np.zeros(5))[1] == rewards[row]


def test_an_episode_ends_with_the_step_after_the_goal_and_reports_success() -> None:
    env = build_environment(MAZE)
    state = env.reset()
    maze: Any = env.base_env._env.unwrapped  # pyright: ignore[reportAttributeAccessIssue]
    seen = []
    for distance in (1.1, 0.9):
        put(maze, distance)
        state = env.step(state.set("action", torch.zeros(2)))
        seen.append([state["next", name].item() for name in ("reward", "terminated", "success")])
    assert seen == [[-1.0, False, False], [0.0, True, True]]
    assert state["observation"].shape == (2,)


def test_episodes_are_given_by_the_seed_and_leave_the_noise_of_others_alone() -> None:
    def episode(seed: int) -> torch.Tensor:
        env = build_environment(OgbenchEnvironment("pointmaze-teleport-v0", 1))
        env.set_seed(seed)
        return torch.stack([env.reset()["observation"] for _ in range(3)])

    np.random.seed(0)
    first = episode(0)
    drawn = np.random.uniform()
    np.random.seed(0)
    assert drawn == np.random.uniform()
    np.random.seed(1)
    assert torch.equal(first, episode(0))
    assert not torch.equal(first, episode(1))
    assert len(first.unique(dim=0)) == 3


@pytest.mark.skipif(reason_without_backend() is not None, reason="no OpenGL library for headless rendering")
def test_a_picture_of_a_maze_shows_the_point_where_it_is() -> None:
    env = MAZE.make(render=True)
    env.reset()
    maze: Any = env._env.unwrapped  # pyright: ignore[reportAttributeAccessIssue]
    maze.set_xy(np.array([0.0, 0.0]))
    pictures = [MAZE.frame(env)]
    maze.set_xy(np.array([20.0, 20.0]))
    pictures.append(MAZE.frame(env))
    env.close()
    assert [(picture.shape, picture.dtype) for picture in pictures] == [((240, 320, 3), np.uint8)] * 2
    rows, columns = (np.abs(pictures[0].astype(int) - pictures[1]).sum(2) > 100).nonzero()
    # It went from the lower left to the upper right.
    assert rows.min() < 80 < 160 < rows.max()
    assert columns.min() < 120 < 200 < columns.max()
    assert MAZE.frames_per_second(MAZE.make(render=False)) == 10.0


def test_a_maze_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for env in (MAZE.make_task(), MAZE.make_without_task()):
        assert Path(env.unwrapped.fullpath).parent == tmp_path
        assert list(tmp_path.iterdir()) == []
        env.reset(seed=0)
        env.close()


def test_a_task_is_that_of_its_number_and_by_default_that_of_the_benchmark() -> None:
    goals = {}
    for number in (1, 2, None):
        maze: Any = OgbenchEnvironment("pointmaze-medium-v0", number).make_task().unwrapped
        maze.reset(seed=0)
        goals[number] = maze.cur_goal_xy
        assert goals[number] == maze.task_infos[(number or 1) - 1]["goal_xy"]
    assert goals[1] == goals[None] != goals[2]
    assert OgbenchEnvironment("pointmaze-medium-v0").label == "pointmaze-medium"
    assert MAZE.label == "pointmaze-medium-task3"


@one_test
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (OgbenchEnvironment("pointmaze-medium-v0", 6), "has no task 6; task_id must be 1, 2, 3, 4 or 5"),
        (OgbenchEnvironment("pointmaze-medium-v0", 0), "has no task 0"),
        (
            OgbenchEnvironment("pointmaze-medum-v0"),
            "'pointmaze-medum-v0' with tasks; did you mean 'pointmaze-medium-v0'",
        ),
        (OgbenchEnvironment("visual-cube-single-v0"), "did you mean 'cube-single-v0'"),
        (OgbenchEnvironment("Pendulum-v1"), "there are antmaze-giant-v0, "),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(environment, words) -> None:
    with pytest.raises(UserError) as caught:
        environment.make(render=False)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@one_test
@pytest.mark.parametrize(
    ("oracle", "name"),
    [
        (NavigateOracle(), "antmaze-medium-v0"),
        (NavigateOracle(), "cube-single-v0"),
        (PlayOracle(), "pointmaze-medium-v0"),
    ],
)
def test_an_environment_without_a_script_is_refused(oracle, name) -> None:
    with pytest.raises(UserError, match=f"{type(oracle).__name__} has no script for {name}; it acts in "):
        oracle.make(OgbenchEnvironment(name))


@pytest.mark.parametrize(
    ("oracle", "task", "steps"),
    [
        (NavigateOracle(), MAZE, 300),
        pytest.param(PlayOracle(), CUBE, 150, marks=pytest.mark.slow),
        pytest.param(NoisyOracle(), CUBE, 150, marks=pytest.mark.slow),
    ],
)
def test_an_oracle_reaches_its_goals_and_depends_on_its_seed_alone(oracle, task, steps) -> None:
    env = oracle.make(task)
    np.random.seed(0)
    first = take_trajectory(oracle, env, steps, seed=5)
    other = take_trajectory(oracle, env, steps, seed=6)
    again = take_trajectory(oracle, env, steps, seed=5)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.reached == first.goals > 0
    assert np.abs(first.arrays["actions"]).max() <= 1.0
    assert first.arrays["terminals"].tolist() == [False] * steps + [True]
    for name, values in first.arrays.items():
        assert len(values) == steps + 1
        np.testing.assert_array_equal(values, again.arrays[name])
    assert not np.array_equal(first.arrays["observations"], other.arrays["observations"])


def test_rows_of_a_trajectory_are_steps_of_the_environment() -> None:
    env = NavigateOracle().make(MAZE)
    trajectory = take_trajectory(NavigateOracle(), env, 40, seed=3, random_fraction=0.5)
    assert trajectory is not None
    arrays = trajectory.arrays
    for row in range(40):
        env.set_state(arrays["qpos"][row].astype(float), arrays["qvel"][row].astype(float))
        observation, *_ = env.step(arrays["actions"][row])
        np.testing.assert_allclose(observation, arrays["observations"][row + 1], atol=1e-4)


def test_a_fraction_of_the_actions_is_uniform() -> None:
    env = NavigateOracle().make(MAZE)
    wild, own = (take_trajectory(NavigateOracle(noise=0.0), env, 400, 0, fraction) for fraction in (0.5, 0.0))
    assert wild is not None
    assert own is not None
    lengths = np.linalg.norm(wild.arrays["actions"], axis=1)
    assert np.abs(np.linalg.norm(own.arrays["actions"], axis=1) - 1.0).max() < 1e-5
    assert (np.abs(lengths - 1.0) > 1e-5).mean() == pytest.approx(0.5, abs=0.1)


def test_goals_are_as_near_as_is_asked_for() -> None:
    env = NavigateOracle().make(MAZE)
    near, far = (take_trajectory(NavigateOracle(max_cells=cells), env, 600, seed=0) for cells in (1, None))
    assert near is not None
    assert far is not None
    assert near.goals > 2 * far.goals > 0


@pytest.mark.parametrize("oracle", [NavigateOracle, PlayOracle, NoisyOracle])
def test_negative_noise_is_refused(oracle: type[Oracle]) -> None:
    with pytest.raises(UserError, match=r"noise must be at least 0, got -0\.5"):
        oracle(noise=-0.5)  # pyright: ignore[reportCallIssue]
