"""Oracles of OGBench: scripts that see the full state of an environment, and make data in it."""

import abc
import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.envs.ogbench import OgbenchEnvironment, OwnNoise

_REACHED = 0.5
"""Distance at which a goal in a maze counts as reached."""
_TABLE = np.array([[0.05, -0.55], [0.80, 0.55]])
"""Where cubes are on the table or within reach of it, x and y in metres. Beyond it the simulation has gone wrong."""


class Script(abc.ABC):
    """An oracle in one trajectory.

    Attributes:
        goals: Goals that it has finished with.
        reached: Those of them that it has reached.
        is_spoilt: Whether the simulation has gone wrong, so that the trajectory must not be kept.
    """

    def __init__(self) -> None:
        self.goals = 0
        self.reached = 0
        self.is_spoilt = False

    @abc.abstractmethod
    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action in a state, shape (A,), which may exceed [-1, 1]. Where a goal is reached the next one follows.

        Args:
            observation: The observation, shape (S,).
            info: What the environment says of its state.
        """


@dataclass(frozen=True)
class Oracle(abc.ABC):
    """A script of OGBench that acts in its environments towards one random goal after the other.

    Attributes:
        acts_in: First words of the names of the environments that it acts in.
    """

    acts_in: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def make(self, environment: OgbenchEnvironment) -> Any:
        """Make the environment to act in, without a task."""

    @abc.abstractmethod
    def begin(self, env: Any, seed: int, noise: np.random.Generator) -> tuple[np.ndarray, dict[str, Any], Script]:
        """Begin a trajectory.

        Args:
            env: Environment of ``make``.
            seed: Its seed.
            noise: Generator of whatever the script draws.

        Returns:
            The first observation, what the environment says of the state, and the script.
        """

    def check(self, environment: OgbenchEnvironment) -> None:
        """Raise unless there is a script for an environment.

        Args:
            environment: The environment.

        Raises:
            UserError: If there is none.
        """
        kind = environment.name.partition("-")[0]
        if kind not in self.acts_in:
            names = ", ".join(f"{word}-..." for word in self.acts_in)
            raise UserError(f"{type(self).__name__} has no script for {environment.name}; it acts in {names}")


@dataclass(frozen=True)
class NavigateOracle(Oracle):
    """Walks a point through a maze, from a random cell to random ones, by the shortest way, with noise.

    OGBench calls such data ``navigate``; with ``max_cells`` 4 and trajectories of 200 steps ``stitch``.

    Args:
        noise: Standard deviation of Gaussian noise added to the direction, whose length is 1.
        max_cells: Cells to a goal at most; None for goals anywhere.

    Raises:
        UserError: If a number is out of its range.
    """

    acts_in: ClassVar[tuple[str, ...]] = ("pointmaze",)

    noise: float = 0.2
    max_cells: int | None = None

    def __post_init__(self) -> None:
        check_range("[0, inf)", noise=self.noise)
        check_range("[1, inf)", max_cells=self.max_cells)

    def make(self, environment: OgbenchEnvironment) -> Any:
        """Make the maze."""
        self.check(environment)
        return environment.make_without_task()

    def begin(self, env: Any, seed: int, noise: np.random.Generator) -> tuple[np.ndarray, dict[str, Any], Script]:
        """Begin in a random cell."""
        cells = np.argwhere(env.maze_map == 0)
        start, goal = (tuple(map(int, cell)) for cell in noise.choice(cells, 2, replace=False))
        observation, info = env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
        return observation, info, _Walk(env, self, noise)


class _Walk(Script):
    """A walk through a maze."""

    def __init__(self, maze: Any, oracle: NavigateOracle, noise: np.random.Generator) -> None:
        super().__init__()
        self._maze, self._oracle, self._noise = maze, oracle, noise
        self._ways: dict[Any, np.ndarray] = {}  # from a cell on to the goal
        self._goal = self._next_goal()

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Step towards the next cell."""
        here = self._maze.get_xy()
        if np.linalg.norm(self._goal - here) < _REACHED:
            self.goals += 1
            self.reached += 1
            self._goal = self._next_goal()
        way = self._way(here) - here
        return way / max(float(np.linalg.norm(way)), 1e-6) + self._oracle.noise * self._noise.standard_normal(2)

    def _way(self, here: np.ndarray) -> np.ndarray:
        cell = self._maze.xy_to_ij(here)
        if cell not in self._ways:
            at_goal = cell == self._maze.xy_to_ij(self._goal)
            self._ways[cell] = self._goal if at_goal else self._maze.get_oracle_subgoal(here, self._goal)[0]
        return self._ways[cell]

    def _next_goal(self) -> np.ndarray:
        here = self._maze.get_xy()
        distance = self._maze.get_oracle_subgoal(here, here)[1]  # cells from here, -1 for walls
        cells = np.argwhere((distance > 0) & (distance <= (self._oracle.max_cells or distance.max())))
        self._ways = {}
        return np.array(self._maze.add_noise(self._maze.ij_to_xy(self._noise.choice(cells))))


@dataclass(frozen=True)
class PlayOracle(Oracle):
    """Moves one random thing on the table after the other, each by a plan made in advance, with smooth noise.

    Cubes are moved to random places, buttons pressed, drawers and windows opened and closed. OGBench calls such data
    ``play``.

    Args:
        noise: Scale of the noise of the plan, in units of the largest action.
        noise_smoothing: Steps over which it is smoothed.

    Raises:
        UserError: If a number is negative.
    """

    acts_in: ClassVar[tuple[str, ...]] = ("cube", "scene", "puzzle")

    noise: float = 0.1
    noise_smoothing: float = 0.5

    def __post_init__(self) -> None:
        check_range("[0, inf)", noise=self.noise, noise_smoothing=self.noise_smoothing)

    def make(self, environment: OgbenchEnvironment) -> Any:
        """Make the table."""
        self.check(environment)
        return environment.make_without_task(mode="data_collection")

    def begin(self, env: Any, seed: int, noise: np.random.Generator) -> tuple[np.ndarray, dict[str, Any], Script]:
        """Begin with things in random places."""
        observation, info = env.reset(seed=seed)
        options = {"noise": self.noise, "noise_smoothing": self.noise_smoothing}
        return observation, info, _Handling(env, "plan", options, 0.0, noise, observation, info)


@dataclass(frozen=True)
class NoisyOracle(Oracle):
    """Moves one random thing on the table after the other by a rule of the current state, with noise in each action.

    OGBench calls such data ``noisy``.

    Args:
        noise: The standard deviation of the Gaussian noise added to actions is uniform between 0 and this, one for each
            trajectory, in the unit of [-1, 1].
        min_norm: Length of the shortest movement of the hand that the rule asks for, in metres before its gain.

    Raises:
        UserError: If a number is negative.
    """

    acts_in: ClassVar[tuple[str, ...]] = ("cube", "scene", "puzzle")

    noise: float = 0.5
    min_norm: float = 0.4

    def __post_init__(self) -> None:
        check_range("[0, inf)", noise=self.noise, min_norm=self.min_norm)

    def make(self, environment: OgbenchEnvironment) -> Any:
        """Make the table."""
        self.check(environment)
        return environment.make_without_task(mode="data_collection")

    def begin(self, env: Any, seed: int, noise: np.random.Generator) -> tuple[np.ndarray, dict[str, Any], Script]:
        """Begin with things in random places."""
        observation, info = env.reset(seed=seed)
        scale = noise.uniform(0.0, self.noise)
        return observation, info, _Handling(env, "markov", {"min_norm": self.min_norm}, scale, noise, observation, info)


class _Handling(Script):
    """Things on a table moved one after the other.

    Args:
        env: The environment.
        kind: Kind of OGBench's oracles, ``plan`` or ``markov``.
        options: Their keyword arguments.
        scale: Standard deviation of the noise added to their actions.
        noise: Generator of this noise.
        observation: The first observation.
        info: What the environment says of the first state.
    """

    def __init__(
        self,
        env: Any,
        kind: str,
        options: dict[str, float],
        scale: float,
        noise: np.random.Generator,
        observation: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        super().__init__()
        self._env, self._kind, self._options, self._scale, self._noise = env, kind, options, scale, noise
        self._oracles: dict[str, Any] = {}
        self._oracle = self._chosen(observation, info)

    def act(self, observation: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Follow the oracle of the thing that is to be moved."""
        if self._oracle.done:
            self.goals += 1
            self.reached += bool(info["success"])
            observation, info = self._env.set_new_target()
            self._oracle = self._chosen(observation, info)
        cubes = [value[:2] for name, value in info.items() if name.startswith("privileged/block_") and "_pos" in name]
        self.is_spoilt |= any(bool((cube < _TABLE[0]).any() or (cube > _TABLE[1]).any()) for cube in cubes)
        action = self._oracle.select_action(observation, info)
        return action + self._scale * self._noise.standard_normal(len(action))

    def _chosen(self, observation: np.ndarray, info: dict[str, Any]) -> Any:
        thing = info["privileged/target_task"]
        if thing not in self._oracles:
            module = importlib.import_module(f"ogbench.manipspace.oracles.{self._kind}.{thing}_{self._kind}")
            oracle = getattr(module, f"{thing.capitalize()}{self._kind.capitalize()}Oracle")
            self._oracles[thing] = oracle(env=self._env, **self._options)
        self._oracles[thing].reset(observation, info)
        return self._oracles[thing]


@dataclass(frozen=True)
class Trajectory:
    """What an oracle did.

    Attributes:
        arrays: Rows of the T + 1 states in the order of time, by their names in OGBench's files: ``observations``
            (T + 1, S), ``actions`` in [-1, 1] (T + 1, A), the last of which was not taken, ``terminals`` (T + 1,),
            which is true in the last row, ``qpos``, ``qvel`` and, where there are buttons, ``button_states``.
        goals: Goals that the oracle has finished with.
        reached: Those of them that it has reached.
    """

    arrays: dict[str, np.ndarray]
    goals: int
    reached: int


def take_trajectory(oracle: Oracle, env: Any, steps: int, seed: int, random_fraction: float = 0.0) -> Trajectory | None:
    """Let an oracle act.

    Args:
        oracle: The oracle.
        env: Environment of its ``make``.
        steps: Steps T.
        seed: Seed of everything that is drawn; the trajectory depends on nothing else.
        random_fraction: Fraction of the steps whose action is uniform instead.

    Returns:
        The trajectory; None where the simulation has gone wrong in it.
    """
    noise = np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {}
    with OwnNoise(seed)():
        observation, info, script = oracle.begin(env, seed, noise)
        for step in range(steps + 1):
            action = np.clip(script.act(observation, info), -1.0, 1.0).astype(np.float32)
            if script.is_spoilt:
                return None
            if random_fraction and noise.random() < random_fraction:
                action = noise.uniform(-1.0, 1.0, action.shape).astype(np.float32)
            row = {"observations": observation, "actions": action, "qpos": env.data.qpos, "qvel": env.data.qvel}
            if "button_states" in info:
                row["button_states"] = info["button_states"]
            for name, value in row.items():
                rows.setdefault(name, []).append(np.array(value))
            if step < steps:
                observation, _, _, _, info = env.step(action)
    arrays = {name: np.stack(values) for name, values in rows.items()}
    arrays = {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in arrays.items()}
    return Trajectory(arrays | {"terminals": np.arange(steps + 1) == steps}, script.goals, script.reached)
