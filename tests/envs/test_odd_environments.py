"""Environments of users: observations of any kind become vectors, and what can't be used is named in one line."""

import re

import numpy as np
import pytest
import torch

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment, examine, roll_out_episodes
from flowmatch_rl.schema import ActionBounds
from tests.combinations import one_test
from tests.envs.odd_environments import PREFIX, FixedEntry
from tests.toys import ConstantPolicy


def odd(name: str, **options) -> GymnasiumEnvironment:
    return GymnasiumEnvironment(f"{PREFIX}{name}-v0", options)


def one_hot(place: int, width: int) -> list[float]:
    return [float(place == entry) for entry in range(width)]


VECTORS = {
    "Integers": lambda t: [t, t + 1],
    "HalfPrecision": lambda t: [t, 0.5],
    "Bytes": lambda t: [t, 255],
    "Choice": lambda t: one_hot(t, 21),
    "Choices": lambda t: one_hot(t % 2, 2) + one_hot(t, 21),
    "Switches": lambda t: [t & 1, t >> 1 & 1, t >> 2 & 1],
    "Number": lambda t: [t],
    "Nested": lambda t: [1, 0, 1, -0.5, 3, 4, 5],
    "Reserved": lambda t: [4, 1, 3, 2, 5],
    "SameArray": lambda t: [t],
    "WithoutConstructor": lambda t: [0.1 * t, 0.1 * t],
}
"""What is observed after t steps, by the name of the environment."""


@one_test
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("name", VECTORS)
def test_observations_of_any_kind_become_float_vectors(name, num_envs) -> None:
    spaces, columns = examine(odd(name))
    assert spaces.observation_dim == len(columns) == len(VECTORS[name](0))
    env = build_environment(odd(name), num_envs)
    env.set_seed(3)
    steps = env.rollout(4).reshape(num_envs, 4)
    for key, shift in (("observation", 0), (("next", "observation"), 1)):
        wanted = torch.tensor([VECTORS[name](t + shift) for t in range(4)], dtype=torch.float32)
        torch.testing.assert_close(steps[key], wanted.expand(num_envs, 4, -1))
    env.close()


@one_test
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("Nested", ["goal_0", "parts.0_0", "parts.0_1", "parts.1_0", "robot.dq_0", "robot.q_0", "robot.q_1"]),
        ("Reserved", ["action_0", "done_0", "next_0", "reward_0", "state_0"]),
        ("PartlyEmpty", ["x_0", "x_1"]),
        ("Switches", ["observation_0", "observation_1", "observation_2"]),
    ],
)
def test_columns_are_named_by_the_entries_they_come_from(name, columns) -> None:
    assert examine(odd(name))[1] == tuple(columns)


def test_reward_of_one_entry_is_a_number() -> None:
    steps = build_environment(odd("RewardArray")).rollout(3)
    assert steps["next", "reward"].tolist() == [[2.5]] * 3


def test_entry_of_an_action_with_equal_bounds_keeps_its_value() -> None:
    spaces, _ = examine(odd("FixedEntry"))
    assert spaces.action_bounds == ActionBounds((-2.0, 0.5), (2.0, 0.5))
    env = build_environment(odd("FixedEntry"))
    state = env.reset()
    for action, wanted in (([-1.0, -1.0], [-2.0, 0.5]), ([0.5, 1.0], [1.0, 0.5])):
        env.step(state.clone().set("action", torch.tensor(action)))
        bare = env.base_env.unwrapped
        assert isinstance(bare, FixedEntry)
        np.testing.assert_allclose(bare.last_action, wanted)
    drawn = torch.stack([env.action_spec.rand() for _ in range(20)])
    assert torch.isfinite(drawn).all()
    assert drawn.abs().max() <= 1.0


@one_test
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EmptyObservations", ["observes nothing"]),
        ("TextObservations", ["Text", "wanted"]),
        ("MissingReward", ["reward None", "one number is wanted"]),
        ("VectorReward", ["reward [1. 2.]", "one number is wanted"]),
        ("TextReward", ["reward '1.0'", "one number is wanted"]),
        ("WrongShape", ["shape (3,)", "shape (2,)"]),
        ("WrongType", ["dict", "shape (2,)"]),
        ("MissingEntry", ["'x'", "'x', 'y'"]),
        ("UnknownChoice", ["7", "0 to 2"]),
        ("OldStep", ["step", "4 values", "observation, reward, terminated, truncated, info"]),
        ("OldReset", ["reset", "observation, info"]),
        ("NoSeed", ["reset", "seed"]),
        ("MissingEnd", ["terminated None", "true or false is wanted"]),
        ("BreaksWhenMade", ["OSError", "no robot at 10.0.0.7", "odd_environments.py:"]),
        ("Breaks", ["ZeroDivisionError", "the robot fell over", "step", "odd_environments.py:"]),
        ("MixedActions", ["composite actions", "wanted"]),
        ("IntegerActions", ["actions", "wanted"]),
    ],
)
def test_environment_that_cannot_be_used_is_refused_in_one_line_before_it_is_used(name, words) -> None:
    with pytest.raises(UserError) as caught:
        examine(odd(name))
    message = str(caught.value)
    assert "\n" not in message
    for word in [f"{name}-v0", *words]:
        assert word in message, message


@one_test
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MissingReward", ["reward None"]),
        ("VectorReward", ["reward [1. 2.]"]),
        ("WrongShape", ["shape (3,)", "shape (2,)"]),
        ("WrongType", ["dict"]),
        ("MissingEntry", ["'x'"]),
        ("UnknownChoice", ["7"]),
        ("Breaks", ["ZeroDivisionError", "the robot fell over", "step", "odd_environments.py:"]),
        ("Quits", ["SystemExit", "3", "step", "odd_environments.py:"]),
    ],
)
def test_environment_that_becomes_odd_ends_the_run_in_one_line(name, words, num_envs) -> None:
    examine(odd(name, odd_from=7))
    env = build_environment(odd(name, odd_from=7), num_envs)
    with pytest.raises(RunError) as caught:
        roll_out_episodes(env, _Still(), 0, 20)
    message = str(caught.value)
    assert "\n" not in message
    for word in [f"{name}-v0", *words]:
        assert word in message, message
    env.close(raise_if_closed=False)


def test_picture_that_cannot_be_drawn_names_the_environment() -> None:
    environment = odd("BreaksWhenRendered")
    env = environment.make(render=True)
    env.reset()
    with pytest.raises(RunError, match=r"^BreaksWhenRendered-v0 raised OSError in render: no display \(odd_"):
        environment.frame(env)


class _Still(ConstantPolicy):
    def forward(self, tensordict):
        return tensordict.set("action", torch.zeros(*tensordict.batch_size, 1))


def test_warnings_of_gymnasium_reach_the_user_in_one_line_with_the_name_of_the_environment() -> None:
    with pytest.warns(UserWarning, match="OtherPrecision-v0") as caught:
        examine(odd("OtherPrecision"))
    texts = [str(warning.message) for warning in caught]
    wanted = r"OtherPrecision-v0: The obs returned by the `reset\(\)` method was expecting [^\n\x1b]*float64"
    assert any(re.fullmatch(wanted, text) for text in texts), texts
    assert len(set(texts)) == len(texts)


def test_examination_draws_no_random_numbers_of_the_run() -> None:
    before = torch.get_rng_state()
    examine(odd("Nested"))
    assert torch.equal(torch.get_rng_state(), before)
