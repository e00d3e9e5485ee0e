"""Tasks of OGBench, which is an optional package: environments with a goal, and the reward of the goal."""

import contextlib
import difflib
import importlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from torchrl.envs import EnvBase

from flowmatch_rl.checks import UserError
from flowmatch_rl.envs import states
from flowmatch_rl.envs.environments import GymnasiumEnv, SimulatedEnvironment, layers, stated_step
from flowmatch_rl.envs.guard import Guard
from flowmatch_rl.envs.rendering import reason_without_backend
from flowmatch_rl.envs.vectors import VectorObservations

_TASK = re.compile(r"(?!visual-)(.+)-singletask-task(\d+)-(v\d+)")
_WIDTH, _HEIGHT = 320, 240
"""Pixels of a picture."""
_UNSTATED_RATE = 20.0
"""Steps per second of the manipulation tasks, which do not state it."""


@dataclass(frozen=True)
class OgbenchEnvironment(SimulatedEnvironment):
    """A task of OGBench: one of its environments, with one of the goals that the benchmark sets there.

    The reward of a step is minus the number of parts of the goal that were missing before it: -1 or 0 in a maze and
    with a single cube. The step after the goal was reached terminates the episode. Needs the extra ``ogbench``.

    Args:
        name: Environment, such as ``pointmaze-medium-v0`` or ``cube-single-v0``, observed as a vector.
        task_id: Number of the task, from 1; None for the one that the benchmark reports results of.
    """

    name: str
    task_id: int | None = None

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        stem = self.name.rpartition("-v")[0] or self.name
        return stem if self.task_id is None else f"{stem}-task{self.task_id}"

    def make_task(self) -> gymnasium.Env:
        """Make the environment of OGBench with this task alone.

        Raises:
            UserError: If OGBench is not installed, or has no such environment or task.
        """
        known = self._known_tasks()
        if self.task_id is not None and self.task_id not in known:
            raise UserError(f"{self.name} has no task {self.task_id}; task_id must be {_choice(known)}")
        stem, _, version = self.name.rpartition("-")
        which = "" if self.task_id is None else f"-task{self.task_id}"
        options: dict[str, Any] = {"disable_env_checker": True, "width": _WIDTH, "height": _HEIGHT}
        return Pictured(Seeded(_made(f"{stem}-singletask{which}-{version}", **options)))

    def make_without_task(self, **options: Any) -> Any:
        """Make the environment of OGBench without wrappers, a time limit and a task, to collect data in.

        Args:
            options: Its keyword arguments.

        Raises:
            UserError: If OGBench is not installed, or has no such environment.
        """
        self._known_tasks()
        return _made(self.name, disable_env_checker=True, **options).unwrapped

    def make_guarded(self, render: bool, reports: Path | None) -> EnvBase:
        """Make the bare TorchRL environment."""
        if render and (reason := reason_without_backend()):
            raise UserError(reason)
        env = VectorObservations(self.make_task(), self.label, success="success")
        return GymnasiumEnv(env, Guard(self.label, None, reports))

    def parts(self, env: EnvBase) -> dict[str, Any]:
        """The wrappers, from outside, the environment, and the data of its simulation."""
        return layers(_vectors(env))

    def read_state(self, env: EnvBase) -> dict[str, Any]:
        """The state of a bare environment."""
        return states.read_state(self.parts(env))

    def column_names(self, env: EnvBase) -> tuple[str, ...]:
        """``observation_0``, ``observation_1`` and so on."""
        return _vectors(env).columns

    def frame(self, env: EnvBase) -> np.ndarray:
        """Picture of the current state of a bare environment, RGB, shape (height, width, 3), bytes."""
        with Guard(self.label)("render"):
            return np.asarray(_vectors(env).render())

    def frames_per_second(self, env: EnvBase) -> float:
        """Environment steps per second of simulated time, for videos."""
        return float(_vectors(env).metadata.get("render_fps", _UNSTATED_RATE))

    def step_s(self, env: EnvBase) -> float | None:
        """Time of a step of a maze; None for the manipulation tasks, which do not state it."""
        return stated_step(_vectors(env))

    def _known_tasks(self) -> list[int]:
        """Numbers of the environment's tasks."""
        try:
            importlib.import_module("ogbench")
        except ModuleNotFoundError as error:
            raise UserError(
                f"{self.name} needs OGBench, which cannot be imported ({error}): pip install flowmatch_rl[ogbench]"
            ) from error
        known: dict[str, list[int]] = {}
        for match in filter(None, map(_TASK.fullmatch, gymnasium.registry)):
            known.setdefault(f"{match[1]}-{match[3]}", []).append(int(match[2]))
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1)
            raise UserError(
                f"OGBench has no environment {self.name!r} with tasks; "
                + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}")
            )
        return sorted(known[self.name])


def _made(name: str, **options: Any) -> gymnasium.Env:
    """An environment, without the file that a maze of OGBench leaves among the temporary ones: its model was read."""
    env = gymnasium.make(name, **options)
    if isinstance(env.unwrapped, MujocoEnv):
        file = Path(env.unwrapped.fullpath)
        if file.parent == Path(tempfile.gettempdir()):
            file.unlink(missing_ok=True)
    return env


class TaskReward:
    """The reward of a task of OGBench in states that are stored in files, by the rule of OGBench's own data sets.

    Args:
        task: The task.

    Attributes:
        task: The task.
        widths: Arrays that make up a state, by the names of OGBench, with their numbers per state.

    Raises:
        UserError: If OGBench is not installed, or has no such environment or task.
    """

    def __init__(self, task: OgbenchEnvironment) -> None:
        self.task, self._env = task, task.make_task()
        _, info = self._env.reset(seed=0)
        self.widths: dict[str, int] = {"qpos": self._env.unwrapped.model.nq}  # pyright: ignore[reportAttributeAccessIssue]
        if "button_states" in info:
            self.widths["button_states"] = len(info["button_states"])

    def __call__(self, states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of states.

        Args:
            states: Arrays of shape (N, width) as ``widths`` has them; others are left alone.

        Returns:
            Rewards of the steps that begin in the states, and whether the task is solved there, so that these steps
            terminate; both of shape (N,), float32 and boolean.
        """
        rule = importlib.import_module("ogbench.relabel_utils")
        held = {name: states[name] for name in self.widths}
        rule.relabel_dataset(self.task.name, self._env, held)
        return held["rewards"], held["masks"] == 0.0


class OwnNoise:
    """A state of NumPy's global generator, which OGBench draws from, apart from everyone else's.

    Args:
        seed: Its seed, or None for any.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._state = np.random.RandomState(None if seed is None else seed % 2**32).get_state()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Use and advance this state, in a ``with`` block."""
        outer = np.random.get_state()
        np.random.set_state(self._state)
        try:
            yield
        finally:
            self._state = np.random.get_state()
            np.random.set_state(outer)


class Seeded(gymnasium.Wrapper):
    """An environment of OGBench whose noise is its own, and given by the seed of its reset.

    What remains is the random action by which the manipulation tasks settle before an episode. It has a generator that
    cannot be seeded, and shows in how hard the gripper touches something at the first step.

    Args:
        env: The environment.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._noise = OwnNoise()
        with _without_warnings():
            shape = env.action_space.shape
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        with _without_warnings():
            if seed is not None:
                self._noise = OwnNoise(seed)
                self.env.action_space.seed(seed)
            with self._noise():
                return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        with self._noise():
            return self.env.step(action)


class Pictured(gymnasium.Wrapper):
    """An environment of OGBench that Gymnasium draws: the arm from its front, a maze from above.

    OGBench draws with the OpenGL library that was chosen when MuJoCo was imported, which TorchRL does before we choose.

    Args:
        env: The environment, which must have been reset once when it is drawn.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._renderer: MujocoRenderer | None = None

    def render(self) -> Any:
        """Picture of the current state, RGB, shape (height, width, 3), bytes."""
        if self._renderer is None:
            bare: Any = self.env.unwrapped
            from_front = "front" in {bare.model.camera(index).name for index in range(bare.model.ncam)}
            above = {"lookat": bare.model.stat.center, "distance": 1.2 * bare.model.stat.extent, "elevation": -90.0}
            self._renderer = MujocoRenderer(
                bare.model,
                bare.data,
                default_cam_config=None if from_front else above,
                width=_WIDTH,
                height=_HEIGHT,
                camera_name="front" if from_front else None,
                camera_id=None if from_front else -1,
            )
        return self._renderer.render("rgb_array")

    def close(self) -> None:
        """Close the environment and free what it was drawn with."""
        if self._renderer is not None:
            self._renderer.close()
        self.env.close()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Leave out what Gymnasium says about the type of OGBench's bounds, which users can't change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _vectors(env: EnvBase) -> Any:
    bare: Any = env
    return bare._env


def _choice(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"
