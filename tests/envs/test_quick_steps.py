"""Steps made in one go are those of the transforms one after the other."""

import pytest
import torch
from torchrl.envs import Compose, EnvBase

from flowmatch_rl.envs import DMControlEnvironment, Environment, GymnasiumEnvironment, building

ENVIRONMENTS = [
    DMControlEnvironment("cartpole", "swingup"),  # two entries, in double precision
    GymnasiumEnvironment("Pendulum-v1", {"max_episode_steps": 4}),
    GymnasiumEnvironment("tests.toys:ToyCounting-v0", {"truncate": False}),
]


def rolled_out(env: EnvBase):
    env.set_seed(2)
    torch.manual_seed(3)
    return env.rollout(9, break_when_any_done=False)


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: environment.label)
def test_steps_are_those_of_the_transforms_one_after_the_other(monkeypatch, environment: Environment, num_envs) -> None:
    quick = building.build_environment(environment, num_envs)
    monkeypatch.setattr(building, "QuickSteps", Compose)
    slow = building.build_environment(environment, num_envs)
    steps, wanted = rolled_out(quick), rolled_out(slow)
    assert set(steps.keys(True, True)) == set(wanted.keys(True, True))
    for key in wanted.keys(True, True):
        assert steps[key].dtype == wanted[key].dtype
        assert torch.equal(steps[key], wanted[key])
    assert quick.specs == slow.specs
    assert steps["next", "step_count"].max() > 1
