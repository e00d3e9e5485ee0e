"""Environments by name, with the transforms that continuous control needs."""

import abc
import difflib
import functools
import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from torchrl.envs import (
    ActionScaling,
    CatTensors,
    Compose,
    DMControlEnv,
    DoubleToFloat,
    EnvBase,
    GymEnv,
    ParallelEnv,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)

from flowmatch_rl.checks import UserError
from flowmatch_rl.envs.rendering import choose_backend, reason_without_backend
from flowmatch_rl.schema import ActionBounds

choose_backend()


@dataclass(frozen=True)
class Environment(abc.ABC):
    """A recipe for an environment; ``build_environment`` makes it.

    Attributes:
        return_range: The lowest and the highest return an episode can have by the rules of the benchmark, None where
            there are no such rules. Reports bring returns of different tasks to one scale with it.
        names_columns: Whether the environment has names of its own for the entries of an observation. Those of a
            simulator are numbered, and the user of a data set may have chosen others.
    """

    return_range: ClassVar[tuple[float, float] | None] = None
    names_columns: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Short name, for titles and run names."""

    @abc.abstractmethod
    def make(self, render: bool) -> EnvBase:
        """Make the bare TorchRL environment.

        Args:
            render: Whether ``frame`` will be called.

        Raises:
            UserError: If there is no such environment.
        """

    @abc.abstractmethod
    def make_copies(self, num_envs: int, parallel: bool) -> EnvBase:
        """Make several bare environments that are stepped together, of batch size (num_envs,), for training.

        Args:
            num_envs: Number of copies, at least 2.
            parallel: Whether each is to run in a process of its own.
        """

    @abc.abstractmethod
    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """Names of the S entries of the observation of a bare environment, as ``build_environment`` orders them."""

    @abc.abstractmethod
    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""

    @abc.abstractmethod
    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""


@dataclass(frozen=True)
class SimulatedEnvironment(Environment, abc.ABC):
    """An environment of a simulator, which runs one copy at a time."""

    def make_copies(self, num_envs: int, parallel: bool) -> EnvBase:
        """Make several bare environments that are stepped together."""
        batched = ParallelEnv if parallel else SerialEnv
        return batched(num_envs, functools.partial(_make_float, self))

    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """Names of the entries of an observation, ``key_0``, ``key_1`` and so on for an entry ``key``."""
        widths = {str(key): spec.shape.numel() for key, spec in _observations(env).items()}
        return tuple(f"{key}_{place}" for key in sorted(widths) for place in range(widths[key]))


@dataclass(frozen=True)
class GymnasiumEnvironment(SimulatedEnvironment):
    """An environment registered with Gymnasium.

    Args:
        name: Identifier such as ``HalfCheetah-v5``; ``package:Name-v0`` imports a package first.
        options: Keyword arguments of the environment.
    """

    name: str = "Pendulum-v1"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return self.name.rpartition(":")[2].rpartition("/")[2]

    def make(self, render: bool) -> EnvBase:
        """Make the bare TorchRL environment."""
        try:
            probe: Any = gymnasium.make(self.name, **self.options)
        except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
            near = difflib.get_close_matches(self.name, gymnasium.registry, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"unknown Gymnasium environment {self.name!r}{hint} ({error})") from error
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise UserError(f"Gymnasium cannot make {self.name!r} with options {self.options}: {error}") from error
        view = _view(probe.unwrapped) if render else {}
        probe.close()
        return GymEnv(self.name, **(view | self.options))

    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""
        return np.asarray(_raw(env).render())

    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""
        return float(_raw(env).metadata.get("render_fps", 30))


def _view(env: Any) -> dict[str, str]:
    """Options that make a Gymnasium environment render, with the camera that follows the body where there is one."""
    view = {"render_mode": "rgb_array"}
    if hasattr(env, "mujoco_renderer"):
        if reason := reason_without_backend():
            raise UserError(reason)
        if "track" in {env.model.camera(index).name for index in range(env.model.ncam)}:
            view["camera_name"] = "track"
    return view


@dataclass(frozen=True)
class DMControlEnvironment(SimulatedEnvironment):
    """A task of the DeepMind Control Suite.

    Args:
        domain: Body, such as ``walker``.
        task: Task of that body, such as ``run``.
        camera: Camera of the videos.
    """

    return_range: ClassVar[tuple[float, float] | None] = (0.0, 1000.0)  # a thousand rewards in [0, 1]

    domain: str
    task: str
    camera: int = 0

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return f"{self.domain}-{self.task}"

    def make(self, render: bool) -> EnvBase:
        """Make the bare TorchRL environment."""
        from dm_control import suite  # imported here: it takes a second, and only these tasks need it

        logging.getLogger("absl").addFilter(_says_no_deprecation)
        names = [f"{domain}-{task}" for domain, task in suite.ALL_TASKS]
        if self.label not in names:
            near = difflib.get_close_matches(self.label, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"unknown DeepMind Control task {self.label!r}{hint}")
        if render and (reason := reason_without_backend()):
            raise UserError(reason)
        return DMControlEnv(self.domain, self.task)

    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""
        return _raw(env).physics.render(height=240, width=320, camera_id=self.camera)

    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""
        return 1.0 / float(_raw(env).control_timestep())


def _says_no_deprecation(record: logging.LogRecord) -> bool:
    """False for what MuJoCo says about attributes in the Suite's own models, which users can't change."""
    return "is deprecated and will be removed" not in record.getMessage()


@dataclass(frozen=True)
class Spaces:
    """Dimensions and bounds of an environment.

    Attributes:
        observation_dim: Dimension S of the observation, all entries concatenated in the order of their names.
        action_dim: Dimension A of the action.
        action_bounds: Bounds of the action, in the environment's unit.
    """

    observation_dim: int
    action_dim: int
    action_bounds: ActionBounds


def build_environment(
    environment: Environment, num_envs: int = 1, parallel: bool = False, render: bool = False
) -> EnvBase:
    """Build an environment with the transforms continuous control needs.

    Observations are float32 vectors under ``observation``, actions lie in [-1, 1]. Episode return and length are kept
    under ``episode_reward`` and ``step_count``; ``terminated`` and ``truncated`` stay apart.

    Args:
        environment: What to build.
        num_envs: Copies, stepped together as a batch (num_envs,); a single one has no batch dimension.
        parallel: One process per copy, for environments that take milliseconds per step.
        render: Whether pictures will be wanted; single environments only.

    Raises:
        UserError: If there is no such environment, or its actions or observations are not vectors of numbers.
    """
    single = environment.make(render)
    spaces_of(single, environment.label)
    observation_keys = sorted(map(str, _observations(single)))
    base = single
    if num_envs > 1:
        single.close()
        base = environment.make_copies(num_envs, parallel)
    return TransformedEnv(
        base,
        Compose(
            DoubleToFloat(),
            ActionScaling(),  # pyright: ignore[reportCallIssue]
            CatTensors(in_keys=observation_keys, out_key="observation", del_keys=observation_keys != ["observation"]),
            RewardSum(),
            StepCounter(),
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
    for key, spec in _observations(env).items():
        if len(spec.shape) > 1 or spec.dtype == torch.uint8:
            raise UserError(
                f"{label} observes {key!r} of shape {tuple(spec.shape)} and type {str(spec.dtype)[6:]}, "
                "which looks like pixels; vectors of reals are wanted"
            )
    return Spaces(
        observation_dim=sum(spec.shape.numel() for spec in _observations(env).values()),
        action_dim=action.shape[0],
        action_bounds=ActionBounds(tuple(low.tolist()), tuple(high.tolist())),
    )


def _make_float(environment: Environment) -> EnvBase:
    """One of several copies. A batch whose episodes end at different times refuses numbers in double precision."""
    return TransformedEnv(environment.make(render=False), DoubleToFloat())


def _raw(env: EnvBase) -> Any:
    return env._env


def _observations(env: EnvBase) -> dict[Any, Any]:
    return dict(env.observation_spec.items(include_nested=True, leaves_only=True))
