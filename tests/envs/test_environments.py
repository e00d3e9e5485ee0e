"""Environments: specs, bounds, ends of episodes, and refusals."""

import logging
import math
import sys

import gymnasium
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule

import tests.toys as toys
from flowmatch_rl.checks import UserError
from flowmatch_rl.data import OnlineData
from flowmatch_rl.envs import (
    DMControlEnvironment,
    Environment,
    GymnasiumEnvironment,
    OgbenchEnvironment,
    build_environment,
    examine,
)
from flowmatch_rl.schema import ActionBounds
from tests.combinations import each_value, one_test
from tests.settings import ENVIRONMENTS


def play(env, steps: int, action: float = 0.0):
    """Play until an episode ends, ``steps`` at most, and return the last step and how many there were."""
    state, taken = env.reset(), 0
    while True:
        state["action"] = torch.full(env.action_spec.shape, action)
        state, taken = env.step(state), taken + 1
        if taken == steps or state["next", "done"].any():
            return state, taken
        state = env.step_mdp(state)


@pytest.mark.parametrize(
    ("environment", "observation_dim", "action_dim"), ENVIRONMENTS, ids=lambda x: getattr(x, "label", "")
)
def test_observations_are_float_vectors_and_actions_fill_the_unit_box(environment, observation_dim, action_dim) -> None:
    env = build_environment(environment)
    env.set_seed(0)
    state = env.reset()
    assert state["observation"].shape == env.observation_spec["observation"].shape == (observation_dim,)
    assert env.action_spec.shape == (action_dim,)
    torch.testing.assert_close(env.action_spec.space.low, -torch.ones(action_dim))
    torch.testing.assert_close(env.action_spec.space.high, torch.ones(action_dim))
    steps = env.rollout(3)
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        assert steps[key].dtype == torch.float32
    assert steps["next", "reward"].shape == (3, 1)
    for flag in ("terminated", "truncated", "done"):
        assert not steps["next", flag].any()
    env.close()


def test_actions_are_rescaled_to_the_environments_own_bounds() -> None:
    env = build_environment(GymnasiumEnvironment("ToyCounting-v0"))
    state = env.reset()
    for action in ([-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]):
        env.step(state.clone().set("action", torch.tensor(action)))
    wanted = [toys.ACTION_LOW, toys.ACTION_HIGH, np.array([-1.0, 7.5])]
    np.testing.assert_allclose(env.base_env.unwrapped.actions, wanted, rtol=1e-6)


@each_value
@pytest.mark.parametrize("action", [-1.0, -0.25, 1.0])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_full_torque_reaches_the_pendulum(action, num_envs) -> None:
    env = build_environment(GymnasiumEnvironment("Pendulum-v1"), num_envs)
    steps = env.step(env.reset().set("action", torch.full(env.action_spec.shape, action)))
    before, after = (part["observation"].reshape(-1, 3)[-1].double() for part in (steps, steps["next"]))
    bare = gymnasium.make("Pendulum-v1").unwrapped
    bare.state = np.array([math.atan2(before[1], before[0]), before[2]])  # pyright: ignore[reportAttributeAccessIssue]
    bare.last_u = None  # pyright: ignore[reportAttributeAccessIssue]
    wanted = bare.step(np.array([2.0 * action]))[0]
    np.testing.assert_allclose(after, wanted, atol=1e-5)


def test_bounds_of_the_spaces_are_in_the_environments_unit() -> None:
    spaces = OnlineData(GymnasiumEnvironment("ToyCounting-v0")).spaces
    assert (spaces.observation_dim, spaces.action_dim) == (2, 2)
    assert spaces.action_bounds == ActionBounds((-3.0, 0.0), (1.0, 10.0))


@pytest.mark.parametrize(
    ("environment", "limit"),
    [(GymnasiumEnvironment("Pendulum-v1"), 200), (DMControlEnvironment("finger", "turn_hard"), 1000)],
    ids=lambda x: getattr(x, "label", ""),
)
def test_time_limit_truncates_and_does_not_terminate(environment, limit) -> None:
    env = build_environment(environment)
    last, steps = play(env, limit + 1)
    assert steps == limit
    assert last["next", "truncated"].all()
    assert last["next", "done"].all()
    assert not last["next", "terminated"].any()
    assert last["next", "step_count"].item() == limit


def test_a_repeated_action_is_one_step_with_the_sum_of_the_rewards() -> None:
    def rolled_out(repeat: int, steps: int):
        env = build_environment(DMControlEnvironment("cartpole", "balance", action_repeat=repeat))
        env.set_seed(3)
        return env.rollout(steps, TensorDictModule(lambda _: torch.tensor([-0.3]), ["observation"], ["action"]))

    single, repeated = rolled_out(1, 14), rolled_out(7, 2)
    assert torch.equal(repeated["next", "observation"], single["next", "observation"][6::7])
    assert single["next", "reward"].min() > 1e-4
    wanted = single["next", "reward"].reshape(2, 7).sum(1, keepdim=True)
    torch.testing.assert_close(repeated["next", "reward"], wanted)


def test_fall_terminates_and_does_not_truncate() -> None:
    env = build_environment(GymnasiumEnvironment("Hopper-v5"))
    env.set_seed(0)
    last, steps = play(env, 999, action=1.0)
    assert steps < 500
    assert last["next", "terminated"].all()
    assert not last["next", "truncated"].any()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_dictionary_is_concatenated_in_the_order_of_its_names(num_envs) -> None:
    env = build_environment(GymnasiumEnvironment("ToyNamed-v0"), num_envs)
    steps = env.rollout(2)
    wanted = torch.arange(1.0, 6.0).expand(*steps.batch_size, 5)
    for part in (steps, steps["next"]):
        torch.testing.assert_close(part["observation"], wanted)
        assert not {"alpha", "zeta"} & set(part.keys())


def test_dimension_of_a_dictionary_is_that_of_all_its_entries() -> None:
    assert OnlineData(GymnasiumEnvironment("ToyNamed-v0")).spaces.observation_dim == 5


def test_double_precision_observations_and_rewards_become_single() -> None:
    env = build_environment(GymnasiumEnvironment("ToyCounting-v0"))
    assert env.base_env.unwrapped.observation_space.dtype == np.float64
    steps = env.rollout(2)
    assert steps["observation"].dtype == steps["next", "reward"].dtype == torch.float32


@pytest.mark.parametrize(
    "environment", [GymnasiumEnvironment("Pendulum-v1"), DMControlEnvironment("fish", "upright")], ids=repr
)
def test_equal_seeds_give_copies_equal_starts_and_copies_differ_among_themselves(environment) -> None:
    env = build_environment(environment, num_envs=3)
    assert env.batch_size == (3,)
    env.set_seed(11)
    first = env.reset()["observation"]
    env.set_seed(11)
    again = env.reset()["observation"]
    env.set_seed(12)
    other = env.reset()["observation"]
    assert first.shape[0] == 3
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first[0], first[1])
    env.close()


@one_test
@pytest.mark.parametrize(
    ("kind", "words"),
    [("discrete", "discrete actions"), ("unbounded", "unbounded"), ("pixels", "pixels"), ("matrix", "(4, 4)")],
)
def test_environments_of_another_kind_are_refused_by_name(kind, words) -> None:
    environment = GymnasiumEnvironment("ToyUnfit-v0", {"kind": kind})
    for attempt in (build_environment, OnlineData):
        with pytest.raises(ValueError) as caught:
            attempt(environment)
        assert words in str(caught.value)
        assert "ToyUnfit-v0" in str(caught.value)
        assert "wanted" in str(caught.value)


@one_test
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (GymnasiumEnvironment("Pendulun-v1"), ["Pendulun-v1", "did you mean 'Pendulum-v1'"]),
        (GymnasiumEnvironment("no_such_package_of_envs:Thing-v0"), ["no_such_package_of_envs:Thing-v0"]),
        (GymnasiumEnvironment("Pendulum-v1", {"gravitas": 3}), ["Pendulum-v1", "gravitas"]),
        (DMControlEnvironment("walker", "runn"), ["walker-runn", "did you mean 'walker-run'"]),
        (DMControlEnvironment("walkr", "run"), ["walkr-run", "did you mean 'walker-run'"]),
    ],
    ids=repr,
)
def test_unknown_names_are_refused_with_a_suggestion(environment: Environment, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build_environment(environment)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("environment", "label"),
    [
        (GymnasiumEnvironment("package.part:space/Thing-v0"), "Thing-v0"),
        (GymnasiumEnvironment("Pendulum-v1"), "Pendulum-v1"),
        (DMControlEnvironment("fish", "swim"), "fish-swim"),
    ],
)
def test_label_is_the_short_name(environment, label) -> None:
    assert environment.label == label


def test_control_suite_keeps_what_its_own_models_are_told_to_itself(caplog) -> None:
    with caplog.at_level(logging.WARNING):
        env = build_environment(DMControlEnvironment("cheetah", "run"))
        env.reset()
        logging.getLogger("absl").warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_an_environment_whose_package_is_absent_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(UserError, match=r"cube-single-v0 needs OGBench.* pip install flowmatch_rl\[ogbench\]"):
        OgbenchEnvironment("cube-single-v0").make(render=False)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_success_of_an_environment_is_reported_beside_the_reward(num_envs) -> None:
    environment = GymnasiumEnvironment("ToyCounting-v0", {"length": 5, "solved_from": 4}, success="is_success")
    env = build_environment(environment, num_envs)
    steps = env.rollout(5).reshape(-1, 5)
    assert steps["next", "success"].squeeze(-1).tolist() == [[False] * 3 + [True] * 2] * num_envs
    assert steps["observation"].shape[-1] == 2
    assert not env.reset()["success"].any()


def test_success_that_is_not_reported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="info from step that lacks 'is_success'; it holds nothing"):
        examine(GymnasiumEnvironment("ToyCounting-v0", success="is_success"))
