"""Gymnasium environments whose observations are vectors of numbers, whatever their space is."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.passive_env_checker import check_action_space, check_obs, check_observation_space

from flowmatch_rl.checks import UserError
from flowmatch_rl.envs.guard import MisfitError

_STEP = "observation, reward, terminated, truncated, info"


@dataclass(frozen=True)
class Part:
    """One entry of an observation.

    Attributes:
        path: Keys and indices that lead to it, empty if it is the whole observation.
        width: Numbers that it becomes.
        read: Turns its value into that many numbers.
    """

    path: tuple[Any, ...]
    width: int
    read: Callable[[Any], np.ndarray]

    @property
    def name(self) -> str:
        """Its path with dots; ``observation`` for the whole."""
        return ".".join(map(str, self.path)) or "observation"


def parts_of(space: spaces.Space, label: str, path: tuple[Any, ...] = ()) -> list[Part]:
    """Entries of the observations of a space, those of a dictionary in the order of their names.

    Boxes of one dimension at most and ``MultiBinary`` become as many numbers as they have entries, a choice of
    ``Discrete`` and each of those of ``MultiDiscrete`` one indicator per choice. ``Dict`` and ``Tuple`` may be nested.

    Args:
        space: The space.
        label: Name of the environment, for errors.
        path: Where the space is in that of the environment.

    Raises:
        UserError: If an entry can't be turned into a vector, or looks like a picture.
    """
    match space:
        case spaces.Dict():
            inner = sorted(space.items(), key=lambda item: str(item[0]))
            return [part for key, value in inner for part in parts_of(value, label, (*path, key))]
        case spaces.Tuple():
            return [part for key, value in enumerate(space) for part in parts_of(value, label, (*path, key))]
        case spaces.Discrete():
            return [_choices(path, np.array([space.n]), np.array([space.start]), ())]
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return [_choices(path, space.nvec, np.asarray(space.start), space.shape)]
        case spaces.Box() | spaces.MultiBinary() if len(space.shape) <= 1:
            return [Part(path, int(np.prod(space.shape)), functools.partial(_numbers, shape=space.shape))]
    name = ".".join(map(str, path)) or "observation"
    if isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete):
        raise UserError(
            f"{label} observes {name!r} of shape {space.shape} and type {space.dtype}, which looks like pixels; "
            "vectors of reals are wanted"
        )
    raise UserError(f"{label} observes {name!r} in a space {type(space).__name__}; vectors of reals are wanted")


class VectorObservations(gymnasium.Wrapper):
    """Turns observations into float32 vectors, and checks what an environment returns.

    What is not as Gymnasium wants it but can be used is left to Gymnasium to warn about, at the first reset and step.

    Of the ``info`` of a step no more is passed on than the entry that says whether the task is solved, under the name
    ``success``.

    Args:
        env: The environment.
        label: Its name, for errors.
        success: Name of that entry, or None.

    Raises:
        UserError: If its observations can't be turned into vectors.
    """

    def __init__(self, env: gymnasium.Env, label: str, success: str | None = None) -> None:
        super().__init__(env)
        self._success = success
        check_observation_space(env.observation_space)
        check_action_space(env.action_space)
        self._unchecked = {"reset", "step"}
        self._parts = parts_of(env.observation_space, label)
        self._trees = _trees(env.observation_space)
        width = sum(part.width for part in self._parts)
        if width == 0:
            raise UserError(f"{label} observes nothing; a vector of at least one number is wanted")
        self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.reward_space = None  # of an environment of several objectives, whose rewards are refused

    @property
    def reports_success(self) -> bool:
        """Whether steps say if the task is solved."""
        return self._success is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the entries of an observation, ``key_0``, ``key_1`` and so on for an entry ``key``."""
        return tuple(f"{part.name}_{place}" for part in self._parts for place in range(part.width))

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Raises:
            MisfitError: If what the environment returns does not fit.
        """
        result = self.env.reset(**options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise MisfitError(f"returned {_described(result)} from reset; observation, info are wanted")
        return self._vector(result[0], "reset"), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take a step.

        Raises:
            MisfitError: If what the environment returns does not fit.
        """
        result: Any = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise MisfitError(f"returned {_described(result)} from step; {_STEP} are wanted")
        observation, reward, terminated, truncated, info = result
        ends = _flag(terminated, "terminated"), _flag(truncated, "truncated")
        return self._vector(observation, "step"), _number(reward), *ends, self._report(info)

    def _report(self, info: Any) -> dict[str, Any]:
        if self._success is None:
            return {}
        if not isinstance(info, Mapping) or self._success not in info:
            held = ", ".join(map(str, info)) if isinstance(info, Mapping) else ""
            raise MisfitError(f"returned an info from step that lacks {self._success!r}; it holds {held or 'nothing'}")
        return {"success": np.array([_flag(info[self._success], self._success)])}

    def _vector(self, observation: Any, method: str) -> np.ndarray:
        for path, keys in self._trees:
            _check_tree(_entry(observation, path), path, keys)
        # Always a copy: an environment may write its next observation into the same array.
        with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are found later on
            values = [part.read(_entry(observation, part.path)).astype(np.float32) for part in self._parts]
        if method in self._unchecked:
            self._unchecked.remove(method)
            check_obs(observation, self.env.observation_space, method)
        return values[0] if len(values) == 1 else np.concatenate(values)


def _choices(path: tuple[Any, ...], counts: np.ndarray, starts: np.ndarray, shape: tuple[int, ...]) -> Part:
    read = functools.partial(_indicators, counts=counts, starts=starts, shape=shape)
    return Part(path, int(counts.sum()), read)


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.shape != shape or array.dtype.kind not in "biuf":
        raise MisfitError(f"returned an observation of {_kind(value, array)}; numbers of shape {shape} are wanted")
    return array.reshape(-1)


def _indicators(value: Any, counts: np.ndarray, starts: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    array = _numbers(value, shape)
    places = array - starts
    known = (array == np.floor(array)) & (places >= 0) & (places < counts)
    if not known.all():
        bad = int(np.argmin(known))
        raise MisfitError(
            f"returned the choice {array[bad]} as an observation; whole numbers from {starts[bad]} to "
            f"{starts[bad] + counts[bad] - 1} are wanted"
        )
    indicators = np.zeros(int(counts.sum()), np.float32)
    indicators[np.concatenate([[0], counts.cumsum()[:-1]]) + places.astype(int)] = 1.0
    return indicators


def _trees(space: spaces.Space, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], set[Any] | int]]:
    """Paths of the dictionaries and tuples within a space, with the keys or the number of their entries."""
    if isinstance(space, spaces.Dict):
        keys, inner = set(space.keys()), space.items()
    elif isinstance(space, spaces.Tuple):
        keys, inner = len(space), enumerate(space)
    else:
        return []
    return [(path, keys), *(tree for key, value in inner for tree in _trees(value, (*path, key)))]


def _check_tree(value: Any, path: tuple[Any, ...], keys: set[Any] | int) -> None:
    where = f" under {'.'.join(map(str, path))!r}" if path else ""
    if isinstance(keys, int):
        if not isinstance(value, Sequence) or len(value) != keys:
            raise MisfitError(f"returned {_described(value)} as an observation{where}; {keys} entries are wanted")
    elif not isinstance(value, Mapping):
        raise MisfitError(f"returned {_described(value)} as an observation{where}; a dictionary is wanted")
    elif set(value) != keys:
        held, wanted = (", ".join(sorted(map(repr, names))) for names in (value, keys))
        raise MisfitError(f"returned an observation{where} with the entries {held or 'none'}; {wanted} are wanted")


def _entry(observation: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _number(reward: Any) -> float:
    return float(reward if isinstance(reward, float | np.floating) else _only(reward, "the reward", "one number"))


def _flag(value: Any, name: str) -> bool:
    return bool(value if isinstance(value, bool | np.bool_) else _only(value, name, "true or false"))


def _only(value: Any, name: str, wanted: str) -> Any:
    """The only entry of a value that is no plain number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise MisfitError(f"returned {name} {_short(value)}; {wanted} is wanted")
    return array.reshape(())


def _described(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, tuple | list) else f"an object of type {type(value).__name__}"


def _kind(value: Any, array: np.ndarray) -> str:
    return f"type {type(value).__name__}" if array.dtype.kind not in "biuf" else f"shape {array.shape}"


def _short(value: Any) -> str:
    text = " ".join((repr(value) if isinstance(value, str) else str(value)).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
