"""Episodes as ExORL and URLB store them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import (
    check_shape,
    existing,
    npz_shapes,
    numbered_files,
    numbers,
    read_npz,
    require_arrays,
    same_dimensions,
)
from flowmatch_rl.data.layouts.base import ArrayLayout, Rows, vector_names
from flowmatch_rl.data.transitions.store import StoreInfo

_ARRAYS = ("observation", "action", "reward", "discount")


@dataclass(frozen=True)
class ExorlEpisodes(ArrayLayout):
    """A folder of ``.npz`` files, one per episode, as ExORL and URLB store them.

    A file of T steps holds ``observation`` (T + 1, S), ``action`` (T + 1, A), ``reward`` and ``discount`` (T + 1, 1);
    row t of each belongs to the arrival at ``observation[t]``, so that ``action[t]`` is the action that led to it, and
    row 0 holds a filler. A discount of 0 at the end is a termination; any other end is a time limit.

    Args:
        path: The folder.
        columns: Names of the entries of an observation; by default ``observation_0`` and so on.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.
    """

    def describe(self) -> StoreInfo:
        """Read the shapes of all episodes."""
        files = self._files()
        shapes = [_episode_shape(file) for file in files]
        observation_dim, action_dim = same_dimensions(files, [dims for _, dims in shapes])
        columns = self.column_names(vector_names("observation", observation_dim))
        return self.description(columns, action_dim, sum(length - 1 for length, _ in shapes))

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, episode by episode in the order of their numbers."""
        for file in self._files():
            yield _episode(file)

    def _files(self) -> list[Path]:
        return numbered_files(existing(self.path, "a folder of .npz episodes"))


def _episode_shape(file: Path) -> tuple[int, tuple[int, int]]:
    """Observations of an episode, and the dimensions of observations and actions."""
    shapes = npz_shapes(file)
    require_arrays(shapes, _ARRAYS, file)
    check_shape(shapes["observation"], (None, None), "observation", file)
    length, observation_dim = shapes["observation"]
    if length < 2:
        raise UserError(f"{str(file)!r} holds {length} observation, wanted at least 2")
    check_shape(shapes["action"], (length, None), "action", file)
    for key in ("reward", "discount"):
        check_shape(shapes[key], (length,), key, file)
    return length, (observation_dim, shapes["action"][1])


def _episode(file: Path) -> Rows:
    arrays = read_npz(file, _ARRAYS)
    require_arrays(arrays, _ARRAYS, file)
    observation = numbers(arrays["observation"], (None, None), "observation", file)
    length = len(observation)
    # What stands in the filler row does not matter.
    action = numbers(arrays["action"][1:], (length - 1, None), "action", file, 1)
    reward = numbers(arrays["reward"][1:], (length - 1,), "reward", file, 1)
    discount = numbers(arrays["discount"][1:], (length - 1,), "discount", file, 1)
    wrong = np.flatnonzero((discount < 0.0) | (discount > 1.0))
    if len(wrong):
        raise UserError(f"'discount' of {str(file)!r} is {discount[wrong[0]]:g} in row {wrong[0] + 1}, wanted [0, 1]")
    terminated = discount == 0.0
    if terminated[:-1].any():
        row = int(np.argmax(terminated)) + 1
        raise UserError(f"'discount' of {str(file)!r} is 0 in row {row}, wanted 0 in the last row, {length - 1}, alone")
    ended = np.arange(length - 1) == length - 2
    observation = observation.astype(np.float32)
    return Rows(
        place=repr(str(file)),
        observation=observation[:-1],
        action=action,
        reward=reward.astype(np.float32),
        next_observation=observation[1:],
        terminated=terminated,
        truncated=ended & ~terminated,
    )
