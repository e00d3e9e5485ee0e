"""The state of a collector and its environments between two blocks, as a checkpoint may hold it."""

from typing import Any

from tensordict import TensorDict

from flowmatch_rl.data.collector import StepCollector
from flowmatch_rl.envs.building import read_environment, write_environment
from flowmatch_rl.envs.environments import Environment


def read_collector(environment: Environment, collector: StepCollector) -> dict[str, Any]:
    """The state of the environments, and where they are as the next step begins.

    Args:
        environment: What they were made of.
        collector: Steps them.

    Raises:
        UnknownStateError: If it cannot be written down.
    """
    state, current = read_environment(environment, collector.env), collector.current
    place = None if current is None else dict(current.clone().flatten_keys("/").items())
    return {"environment": state, "current": place}


def write_collector(environment: Environment, collector: StepCollector, state: dict[str, Any]) -> None:
    """Let a collector continue from a state.

    Args:
        environment: What its environments were made of.
        collector: Has as many of them, seeded.
        state: What ``read_collector`` returned.
    """
    env, current = collector.env, state["current"]
    write_environment(environment, env, state["environment"])
    if current is not None:
        entries = {tuple(name.split("/")): value for name, value in current.items()}
        collector.current = TensorDict(entries, env.batch_size, device=env.device)
