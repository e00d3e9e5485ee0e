"""Environments as a run uses them: tried out, with the transforms that continuous control needs."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchrl.envs import (
    CatTensors,
    DoubleToFloat,
    EnvBase,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.envs.environments import Environment, observations_of
from flowmatch_rl.envs.finite import FiniteNumbers
from flowmatch_rl.envs.guard import in_one_line
from flowmatch_rl.envs.quick_steps import QuickSteps
from flowmatch_rl.envs.states import UnknownStateError
from flowmatch_rl.envs.unit_actions import UnitActions
from flowmatch_rl.schema import ActionBounds, Interface

_GYMNASIUM_WARNS = "WARN: "


@dataclass(frozen=True)
class Spaces:
    """Dimensions and bounds of an environment.

    Attributes:
        observation_dim: Dimension S of the observation, all entries concatenated in the order of their names.
        action_dim: Dimension A of the action.
        action_bounds: Bounds of the action, in the environment's unit.
        interface: Names and units of the entries, and the time of a step.
    """

    observation_dim: int
    action_dim: int
    action_bounds: ActionBounds
    interface: Interface = Interface()

    @property
    def dimensions(self) -> dict[str, Any]:
        """Arguments of a model that they determine."""
        names = "observation_dim", "action_dim", "action_bounds"
        return {name: getattr(self, name) for name in names}


def build_environment(
    environment: Environment,
    num_envs: int = 1,
    parallel: bool = False,
    render: bool = False,
    env_step: Callable[[int], int] | None = None,
) -> EnvBase:
    """Build an environment with the transforms continuous control needs.

    Observations are float32 vectors under ``observation``, actions lie in [-1, 1]. Episode return and length are kept
    under ``episode_reward`` and ``step_count``; ``terminated`` and ``truncated`` stay apart. An action, an observation
    or a reward that is not finite ends the run, see ``FiniteNumbers``.

    Args:
        environment: What to build.
        num_envs: Copies, stepped together as a batch (num_envs,); a single one has no batch dimension.
        parallel: One process per copy, for environments that take milliseconds per step.
        render: Whether pictures will be wanted; single environments only.
        env_step: Number of an environment step for messages, given how many steps all copies have taken; None for
            steps of episodes alone.

    Raises:
        UserError: If there is no such environment, or its actions or observations are not vectors of numbers.
    """
    single = environment.make(render)
    bounds = spaces_of(single, environment.label).action_bounds
    low, high = (torch.tensor(bound, dtype=single.action_spec.dtype) for bound in (bounds.low, bounds.high))
    observation_keys = sorted(map(str, observations_of(single)))
    base = single
    if num_envs > 1:
        single.close()
        base = environment.make_copies(num_envs, parallel)
    return TransformedEnv(
        base,
        QuickSteps(
            DoubleToFloat(),
            UnitActions(low, high),  # pyright: ignore[reportCallIssue]
            CatTensors(in_keys=observation_keys, out_key="observation", del_keys=observation_keys != ["observation"]),
            RewardSum(),
            StepCounter(),
            FiniteNumbers(environment.label, env_step),
        ),
    )


def spaces_of(env: EnvBase, label: str) -> Spaces:
    """Dimensions and bounds of a bare environment.

    Args:
        env: Environment without transforms.
        label: Name to use in errors.

    Raises:
        UserError: If actions are not a bounded vector of reals, or an observation is a picture or not a vector.
    """
    action = env.action_spec
    if action.domain != "continuous" or len(action.shape) != 1:
        raise UserError(
            f"{label} has {action.domain} actions of shape {tuple(action.shape)}; a vector of reals is wanted"
        )
    box: Any = action.space
    low, high = box.low.flatten().double(), box.high.flatten().double()
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()) or float(high.abs().max()) > 1e30:
        raise UserError(f"{label} has unbounded actions; finite bounds are wanted")
    for key, spec in observations_of(env).items():
        if len(spec.shape) > 1 or spec.dtype == torch.uint8:
            raise UserError(
                f"{label} observes {key!r} of shape {tuple(spec.shape)} and type {str(spec.dtype)[6:]}, "
                "which looks like pixels; vectors of reals are wanted"
            )
    return Spaces(
        observation_dim=sum(spec.shape.numel() for spec in observations_of(env).values()),
        action_dim=action.shape[0],
        action_bounds=ActionBounds(tuple(low.tolist()), tuple(high.tolist())),
    )


def read_environment(environment: Environment, env: EnvBase) -> Any:
    """The state of what ``build_environment`` made, as a checkpoint may hold it.

    Args:
        environment: What it was made of.
        env: What it made, reset at least once.

    Raises:
        UnknownStateError: If it cannot be written down.
    """
    bare: Any = env.base_env  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(bare, ParallelEnv):
        raise UnknownStateError("in processes of its own")
    if isinstance(bare, SerialEnv):
        return [environment.read_state(copy.base_env) for copy in _copies(bare)]
    return environment.read_state(bare)


def write_environment(environment: Environment, env: EnvBase, state: Any) -> None:
    """Put what ``build_environment`` made into a state that ``read_environment`` returned.

    Args:
        environment: What it was made of.
        env: What it made, of as many copies, reset at least once.
        state: The state.
    """
    bare: Any = env.base_env  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(bare, SerialEnv):
        for copy, held in zip(_copies(bare), state, strict=True):
            environment.write_state(copy.base_env, held)
    else:
        environment.write_state(bare, state)


def _copies(env: Any) -> list[Any]:
    return env._envs


def examine(environment: Environment) -> tuple[Spaces, tuple[str, ...]]:
    """Try an environment out, one episode of two steps at most, before anything depends on it.

    What Gymnasium warns about is warned about in one line each, with the environment's name.

    Args:
        environment: The environment.

    Returns:
        Its spaces, and the names of the S entries of an observation.

    Raises:
        UserError: If it can't be made or used.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with contextlib.closing(environment.make(render=False)) as env:
                spaces, columns = spaces_of(env, environment.label), environment.column_names(env)
                spaces = dataclasses.replace(spaces, interface=Interface(columns, step_s=environment.step_s(env)))
                _try_out(env, spaces)
        except RunError as error:
            raise UserError(str(error)) from error
    texts = [in_one_line(warning.message) for warning in caught if isinstance(warning.message, Warning)]
    for text in dict.fromkeys(text for text in texts if text.startswith(_GYMNASIUM_WARNS)):
        warnings.warn(f"{environment.label}: {text.removeprefix(_GYMNASIUM_WARNS)}", stacklevel=1)
    return spaces, columns


def _try_out(env: EnvBase, spaces: Spaces) -> None:
    env.set_seed(0)
    state = env.reset()
    middle = torch.tensor(spaces.action_bounds.low).add(torch.tensor(spaces.action_bounds.high)) / 2
    for _ in range(2):
        state = env.step(state.set("action", middle.to(env.action_spec.dtype)))
        if bool(state["next", "done"].any()):
            return
        state = env.step_mdp(state)
