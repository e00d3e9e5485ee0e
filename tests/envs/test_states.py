"""States of environments: written down, loaded as a checkpoint is, and continued from in another object."""

import io
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

import tests.toys  # noqa: F401 (registers environments)
from flowmatch_rl.envs import DMControlEnvironment, GymnasiumEnvironment, ProcessEnvironment, build_environment
from flowmatch_rl.envs.building import read_environment, write_environment
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.envs.states import UnknownStateError, read_state, write_state
from flowmatch_rl.testbeds import LinearGaussianProcess
from tests.test_exact_resume import difference

SHORT = {"max_episode_steps": 9}
ENVIRONMENTS = [
    GymnasiumEnvironment("Pendulum-v1", SHORT),
    GymnasiumEnvironment("MountainCarContinuous-v0", SHORT),
    GymnasiumEnvironment("ToyCounting-v0", {"length": None}),
    GymnasiumEnvironment("HalfCheetah-v5", SHORT),
    GymnasiumEnvironment("Ant-v5", SHORT),  # its rewards use positions that lag behind the simulation's
    DMControlEnvironment("reacher", "easy", action_repeat=125),  # the target is part of the model
    DMControlEnvironment("quadruped", "escape", action_repeat=1),  # so is the ground
    ProcessEnvironment(LinearGaussianProcess(), max_steps=9),
]


def begin(environment: Environment, seed: int, copies: int = 1) -> tuple[EnvBase, TensorDictBase]:
    env = build_environment(environment, copies)
    env.set_seed(seed)
    return env, env.reset()


def take(env: EnvBase, current: TensorDictBase, actions: list[Tensor]) -> tuple[TensorDictBase, TensorDictBase]:
    """Steps with these actions, and where they lead."""
    steps: list[Any] = []
    for action in actions:
        step, current = env.step_and_maybe_reset(current.set("action", action))
        steps.append(step["next"])
    taken: Any = torch.stack(steps)
    return taken, current


def stored(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("environment", "copies"),
    [*((environment, 1) for environment in ENVIRONMENTS), (ENVIRONMENTS[0], 2), (ENVIRONMENTS[-1], 2)],
    ids=lambda value: value.label if isinstance(value, Environment) else str(value),
)
def test_steps_from_a_state_are_the_same_whatever_came_between_and_in_another_object(environment, copies) -> None:
    env, current = begin(environment, 0, copies)
    generator = torch.Generator().manual_seed(1)
    actions = [
        2.0 * torch.rand((*current.batch_size, env.action_spec.shape[-1]), generator=generator) - 1.0 for _ in range(20)
    ]
    _, current = take(env, current, actions[:5])
    state, kept = stored(read_environment(environment, env)), current.clone()
    wanted, _ = take(env, current, actions[5:])
    write_environment(environment, env, state)
    again, _ = take(env, kept.clone(), actions[5:])
    other, _ = begin(environment, 7, copies)
    write_environment(environment, other, state)
    assert difference(read_environment(environment, other), state) == ""
    elsewhere, _ = take(other, kept.clone(), actions[5:])
    for got in (again, elsewhere):
        for name in ("observation", "reward", "done", "episode_reward", "step_count"):
            assert torch.equal(got[name], wanted[name]), name
    if "escape" not in environment.label:
        assert bool(wanted["done"].any()), "the episode ends on the way"


class Opaque:
    """An object whose state nobody knows."""


class Holder:
    """Holds what it is given."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)


def test_what_cannot_be_written_down_is_named() -> None:
    with pytest.raises(UnknownStateError, match=r"^Holder\.world is of type Opaque$"):
        read_state({"environment": Holder(steps=1, world=Opaque())})


def test_a_view_takes_the_content_and_stays_a_view() -> None:
    whole = torch.arange(4.0, dtype=torch.float64).numpy().copy()
    holder = Holder(part=whole[1:3])
    state = stored(read_state({"": holder}))
    whole[:] = -1.0
    write_state({"": holder}, state)
    assert whole.tolist() == [-1.0, 1.0, 2.0, -1.0]
