"""Numbers that are not finite are named where they first appear."""

import math

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from flowmatch_rl.checks import RunError
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment, roll_out_episodes
from tests.combinations import each_value
from tests.toys import ConstantPolicy


class FailsAt(TensorDictModuleBase):
    """A policy whose action in one step of an episode is not finite.

    Args:
        step: The step, counted from 1.
        value: What stands in its second entry.
    """

    def __init__(self, step: int, value: float = math.nan) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["observation"], ["action"]
        self.step, self.value = step, value

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = torch.zeros(*tensordict.batch_size, 2)
        action[..., 1][tensordict["observation"][..., 0] == self.step - 1] = self.value
        return tensordict.set("action", action)


def evaluate(policy=None, num_envs: int = 1, max_steps: int = 100, **options):
    env = build_environment(GymnasiumEnvironment("ToyCounting-v0", options), num_envs)
    return roll_out_episodes(env, policy or ConstantPolicy(), 0, max_steps)


@each_value
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("option", "name"), [("bad_reward_at", "a reward"), ("bad_observation_at", "an observation")])
def test_what_an_environment_returns_in_an_evaluation_is_named_with_the_step_of_its_episode(
    option, name, value, num_envs
) -> None:
    words = rf"^ToyCounting-v0 returned {name} that is not finite \({value}\) in step 4 of an episode$"
    with pytest.raises(RunError, match=words):
        evaluate(num_envs=num_envs, bad_value=value, **{option: 4})


def test_an_observation_comes_before_the_reward_of_its_step_and_before_what_the_policy_makes_of_it() -> None:
    with pytest.raises(RunError, match=r"an observation .* step 4 "):
        evaluate(bad_observation_at=4, bad_reward_at=4)
    with pytest.raises(RunError, match=r"a reward .* step 3 "):
        evaluate(bad_observation_at=4, bad_reward_at=3)


@each_value
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_action_is_named_as_the_policys_before_the_environment_sees_it(value, num_envs) -> None:
    words = rf"^the policy's action is not finite \({value}\) in step 3 of an episode of ToyCounting-v0; .* is 2$"
    with pytest.raises(RunError, match=words):
        evaluate(FailsAt(3, value), num_envs)


def test_an_observation_that_is_not_finite_on_a_reset_is_named() -> None:
    with pytest.raises(RunError, match=r"returned an observation that is not finite \(nan\) on a reset"):
        evaluate(bad_observation_at=0)


def test_numbers_whose_sum_overflows_are_finite() -> None:
    steps = evaluate(bad_observation_at=1, bad_value=3e38, length=3)
    assert steps["mask"].all()
