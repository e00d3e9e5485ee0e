"""Environments by name, with the transforms that continuous control needs."""

import abc
import difflib
import functools
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv
from torchrl.data import Binary
from torchrl.envs import (
    DMControlEnv,
    DoubleToFloat,
    EnvBase,
    GymWrapper,
    SerialEnv,
    TransformedEnv,
    default_info_dict_reader,
)

from flowmatch_rl.batches import SUCCESS
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.envs import states
from flowmatch_rl.envs.copies import ParallelCopies
from flowmatch_rl.envs.guard import Guard, Guarded, in_one_line
from flowmatch_rl.envs.rendering import reason_without_backend
from flowmatch_rl.envs.vectors import VectorObservations

D4RL_RETURNS = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
"""Returns of a random and of an expert policy on tasks of Gymnasium, as D4RL states them."""


@dataclass(frozen=True)
class Environment(abc.ABC):
    """A recipe for an environment; ``build_environment`` makes it.

    Attributes:
        names_columns: Whether the environment has names of its own for the entries of an observation. Those of a
            simulator are numbered, and the user of a data set may have chosen others.
    """

    names_columns: ClassVar[bool] = False

    @property
    def return_range(self) -> tuple[float, float] | None:
        """Returns of an episode that count as 0 and as 1, None where no benchmark defines them.

        They are the lowest and the highest possible return, or those of a random and of an expert policy. Reports
        bring returns of different tasks to one scale with them, and tests state normalised scores.
        """
        return None

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
    def read_state(self, env: EnvBase) -> dict[str, Any]:
        """The state of a bare environment of ``make``, as a checkpoint may hold it.

        Raises:
            UnknownStateError: If it cannot be written down.
        """

    @abc.abstractmethod
    def write_state(self, env: EnvBase, state: dict[str, Any]) -> None:
        """Put a bare environment of ``make`` into a state that ``read_state`` returned, also that of another one."""

    @abc.abstractmethod
    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """Names of the S entries of the observation of a bare environment, as ``build_environment`` orders them."""

    @abc.abstractmethod
    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""

    @abc.abstractmethod
    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""

    def step_s(self, env: EnvBase) -> float | None:
        """Time of a step of a bare environment, seconds; None if the environment does not state it."""
        return None


@dataclass(frozen=True)
class SimulatedEnvironment(Environment, abc.ABC):
    """An environment of a simulator, which runs one copy at a time."""

    @abc.abstractmethod
    def make_guarded(self, render: bool, reports: Path | None) -> EnvBase:
        """As ``make``, for a process whose errors are to be written to a folder of reports."""

    def make(self, render: bool) -> EnvBase:
        """Make the bare TorchRL environment."""
        return self.make_guarded(render, None)

    @abc.abstractmethod
    def parts(self, env: EnvBase) -> dict[str, Any]:
        """The objects that hold the state of a bare environment, by name, see ``envs.states``."""

    def write_state(self, env: EnvBase, state: dict[str, Any]) -> None:
        """Put a bare environment into a state."""
        states.write_state(self.parts(env), state)

    def make_copies(self, num_envs: int, parallel: bool) -> EnvBase:
        """Make several bare environments that are stepped together."""
        make = functools.partial(_make_float, self)
        return ParallelCopies(num_envs, self.label, make) if parallel else SerialEnv(num_envs, make)


@dataclass(frozen=True)
class GymnasiumEnvironment(SimulatedEnvironment):
    """An environment registered with Gymnasium.

    Its observations may be of any space that has a vector: boxes of one dimension, ``Discrete``, ``MultiDiscrete`` and
    ``MultiBinary`` ones, and dictionaries and tuples of these, see ``VectorObservations``.

    Args:
        name: Identifier such as ``HalfCheetah-v5``; ``package:Name-v0`` imports a package first.
        options: Keyword arguments of the environment.
        timeout_s: Seconds after which a reset or step that does not return ends the run; None for no end.
        success: Entry of the ``info`` of a step that says whether the task is solved, such as ``is_success``, for the
            success rate of evaluations; None for none.

    Raises:
        UserError: If ``timeout_s`` is not positive.
    """

    name: str = "Pendulum-v1"
    options: dict[str, Any] = field(default_factory=dict)
    timeout_s: float | None = field(default=300.0, repr=False)  # which changes no data, whose provenance is the repr
    success: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_range("(0, inf)", timeout_s=self.timeout_s)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return self.name.rpartition(":")[2].rpartition("/")[2]

    @property
    def return_range(self) -> tuple[float, float] | None:
        """Returns of a random and of an expert policy where D4RL states them, for tasks without options of their own.

        They were measured with the version 2 of the tasks; later versions have the same rewards or similar ones.

        Reference:
            Fu et al., arXiv:2004.07219.
        """
        stem, _, version = self.name.rpartition("-v")
        return D4RL_RETURNS.get(stem) if version.isdigit() and not self.options else None

    def make_guarded(self, render: bool, reports: Path | None) -> EnvBase:
        """Make the bare TorchRL environment."""
        guard = Guard(self.label, self.timeout_s, reports)
        env = self._made({})
        if render:
            view = _view(env.unwrapped)
            env.close()
            env = self._made(view)
        return GymnasiumEnv(env, guard)

    def _made(self, view: dict[str, str]) -> VectorObservations:
        try:
            options: dict[str, Any] = {"disable_env_checker": True} | view | self.options
            env = gymnasium.make(self.name, **options)
            return VectorObservations(env, self.label, self.success)
        except UserError:
            raise
        except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
            near = difflib.get_close_matches(self.name, gymnasium.registry, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"unknown Gymnasium environment {self.name!r}{hint} ({error})") from error
        except Exception as error:  # what the constructor of a user's class may raise
            raise UserError(
                f"Gymnasium cannot make {self.name!r} with options {self.options}: "
                f"{type(error).__name__}: {in_one_line(error)}"
            ) from error

    def parts(self, env: EnvBase) -> dict[str, Any]:
        """The wrappers, from outside, the environment, and the data of its simulation."""
        return layers(_raw(env))

    def read_state(self, env: EnvBase) -> dict[str, Any]:
        """The state of a bare environment."""
        return states.read_state(self.parts(env))

    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """Names of the entries of an observation, ``key_0``, ``key_1`` and so on for an entry ``key``."""
        return _raw(env).columns

    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""
        with Guard(self.label, self.timeout_s)("render"):
            return np.asarray(_raw(env).render())

    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""
        return float(_raw(env).metadata.get("render_fps", 30))

    def step_s(self, env: EnvBase) -> float | None:
        """The attribute ``dt``, which those of MuJoCo and classic control have; None for one without."""
        return stated_step(_raw(env))


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
        action_repeat: Control steps that each action is held for, at least 1; they count as one step, whose reward is
            the sum of theirs.

    Raises:
        UserError: If ``action_repeat`` is below 1.
    """

    domain: str
    task: str
    camera: int = 0
    action_repeat: int = 1

    def __post_init__(self) -> None:
        check_range("[1, inf)", action_repeat=self.action_repeat)

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        return f"{self.domain}-{self.task}"

    @property
    def return_range(self) -> tuple[float, float]:
        """The lowest and the highest return: those of a thousand rewards in [0, 1]."""
        return 0.0, 1000.0

    def make_guarded(self, render: bool, reports: Path | None) -> EnvBase:
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
        return ControlSuiteEnv(self.domain, self.task, self.action_repeat, Guard(self.label, None, reports))

    def parts(self, env: EnvBase) -> dict[str, Any]:
        """The loop of an episode, its task, and the data of its simulation."""
        raw = _raw(env)
        return {"loop": raw, "task": raw.task, "simulation": raw.physics.data.ptr}

    def read_state(self, env: EnvBase) -> dict[str, Any]:
        """The state of a bare environment; its physics are wrapped data of a simulation."""
        return states.read_state(self.parts(env), _raw(env).physics)

    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """Names of the entries of an observation, ``key_0``, ``key_1`` and so on for an entry ``key``."""
        widths = {str(key): spec.shape.numel() for key, spec in observations_of(env).items()}
        return tuple(f"{key}_{place}" for key in sorted(widths) for place in range(widths[key]))

    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""
        return _raw(env).physics.render(height=240, width=320, camera_id=self.camera)

    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""
        return 1.0 / self.step_s(env)

    def step_s(self, env: EnvBase) -> float:
        """Time of a step, its repetitions included."""
        return self.action_repeat * float(_raw(env).control_timestep())


def _says_no_deprecation(record: logging.LogRecord) -> bool:
    """False for what MuJoCo says about attributes in the Suite's own models, which users can't change."""
    return "is deprecated and will be removed" not in record.getMessage()


class GymnasiumEnv(Guarded, GymWrapper):
    """A Gymnasium environment of vectors, guarded.

    Args:
        env: The environment.
        guard: Its guard.
    """

    def __init__(self, env: VectorObservations, guard: Guard, **options: Any) -> None:
        super().__init__(env, **options)
        self.guard = guard
        if env.reports_success:
            self.set_info_dict_reader(default_info_dict_reader([SUCCESS[-1]], [Binary(n=1, dtype=torch.bool)]))


class ControlSuiteEnv(Guarded, DMControlEnv):
    """A task of the DeepMind Control Suite, guarded.

    Args:
        domain: Body.
        task: Task of that body.
        action_repeat: Control steps that each action is held for.
        guard: Its guard.
    """

    def __init__(self, domain: str, task: str, action_repeat: int, guard: Guard) -> None:
        super().__init__(domain, task, frame_skip=action_repeat)
        self.guard = guard


def _make_float(environment: SimulatedEnvironment, reports: Path | None = None) -> EnvBase:
    """One of several copies. A batch whose episodes end at different times refuses numbers in double precision."""
    return TransformedEnv(environment.make_guarded(render=False, reports=reports), DoubleToFloat())


def stated_step(env: gymnasium.Env) -> float | None:
    """Time of a step that a Gymnasium environment states by its attribute ``dt``, seconds; None without one."""
    step = getattr(env.unwrapped, "dt", None)
    return float(step) if isinstance(step, int | float | np.number) and 0.0 < step < math.inf else None


def layers(env: gymnasium.Env) -> dict[str, Any]:
    """A Gymnasium environment's wrappers, from outside, itself, and the data of its simulation, by name."""
    found: dict[str, Any] = {}
    while isinstance(env, gymnasium.Wrapper):
        found[str(len(found))] = env
        env = env.env
    simulation = {"simulation": env.data} if isinstance(env, MujocoEnv) else {}
    return found | {"environment": env} | simulation


def _raw(env: EnvBase) -> Any:
    return env._env


def observations_of(env: EnvBase) -> dict[Any, Any]:
    """Specifications of the entries of an observation of a bare environment, by name."""
    entries = env.observation_spec.items(include_nested=True, leaves_only=True)
    # TorchRL counts whatever a step reports beside its reward among them.
    return {key: spec for key, spec in entries if key != SUCCESS[-1]}
