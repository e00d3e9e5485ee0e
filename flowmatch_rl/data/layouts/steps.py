"""Files with one row per step, one trajectory after the other, and flags at their ends."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import BLOCK_ROWS, check_shape, numbers, require_arrays
from flowmatch_rl.data.layouts.base import Rows

OPTIONAL_VECTORS = ("rewards", "masks", "valids")
"""Vectors that a file may hold."""


@dataclass(frozen=True)
class StepFile:
    """The arrays of a file with one row per step, and where its trajectories end.

    Attributes:
        file: The file.
        arrays: ``observations`` (N, S), ``actions`` (N, A), perhaps ``next_observations`` (N, S) and ``rewards`` (N,),
            read slice by slice. Without arrival states each row arrives where the next one starts, and the last row
            of a trajectory gives no transition. Without rewards they are 0.
        terminated: Whether the arrival state of a row is terminal, boolean, shape (N,).
        last: Whether a row is the last of its trajectory, boolean, shape (N,); the last row of the file always is.
    """

    file: Path
    arrays: Mapping[str, np.ndarray | h5py.Dataset]
    terminated: np.ndarray
    last: np.ndarray

    @property
    def holds_arrivals(self) -> bool:
        """Whether the file holds the arrival state of every row."""
        return "next_observations" in self.arrays

    def rows(self) -> Iterator[Rows]:
        """Read the transitions in the order of the file.

        Raises:
            UserError: If an array does not hold finite numbers of the right shape.
        """
        for start in range(0, len(self.last), BLOCK_ROWS):
            stop = min(start + BLOCK_ROWS, len(self.last))
            yield self._with_arrivals(start, stop) if self.holds_arrivals else self._successive(start, stop)

    def _with_arrivals(self, start: int, stop: int) -> Rows:
        terminated = self.terminated[start:stop]
        return Rows(
            place=repr(str(self.file)),
            observation=self._matrix("observations", start, stop).astype(np.float32),
            action=self._matrix("actions", start, stop),
            reward=self._rewards(start, stop),
            next_observation=self._matrix("next_observations", start, stop).astype(np.float32),
            terminated=terminated,
            truncated=self.last[start:stop] & ~terminated,
        )

    def _successive(self, start: int, stop: int) -> Rows:
        kept = np.flatnonzero(~self.last[start:stop])
        # The arrival of a block's last row is the first of the next block; the last row of the file is never kept.
        observation = self._matrix("observations", start, min(stop + 1, len(self.last))).astype(np.float32)
        terminated = self.terminated[start:stop][kept]
        return Rows(
            place=repr(str(self.file)),
            observation=observation[kept],
            action=self._matrix("actions", start, stop)[kept],
            reward=self._rewards(start, stop)[kept],
            next_observation=observation[kept + 1],
            terminated=terminated,
            truncated=self.last[start + kept + 1] & ~terminated,
        )

    def _rewards(self, start: int, stop: int) -> np.ndarray:
        if "rewards" not in self.arrays:
            return np.zeros(stop - start, np.float32)
        values = np.asarray(self.arrays["rewards"][start:stop])
        return numbers(values, (stop - start,), "rewards", self.file, start).astype(np.float32)

    def _matrix(self, key: str, start: int, stop: int) -> np.ndarray:
        return numbers(np.asarray(self.arrays[key][start:stop]), (stop - start, None), key, self.file, start)


def ends(last: np.ndarray) -> np.ndarray:
    """Flags of the last rows of trajectories, with the end of the file as one of them.

    Args:
        last: Flags by the file, boolean, shape (N,).
    """
    return last | (np.arange(len(last)) == len(last) - 1)


def step_dimensions(shapes: Mapping[str, tuple[int, ...]], flags: Sequence[str], file: Path) -> tuple[int, int, int]:
    """Rows of a file with one row per step, and the dimensions of its observations and actions.

    Args:
        shapes: Shapes of its arrays.
        flags: Names of the vectors of flags that it must hold.
        file: The file.

    Raises:
        UserError: If an array is missing, or they differ in length.
    """
    require_arrays(shapes, ("observations", "actions", *flags), file)
    if shapes["observations"][:1] == (0,):
        raise UserError(f"{str(file)!r} holds no rows")
    check_shape(shapes["observations"], (None, None), "observations", file)
    rows, observation_dim = shapes["observations"]
    check_shape(shapes["actions"], (rows, None), "actions", file)
    for name in (*flags, *(name for name in OPTIONAL_VECTORS if name in shapes)):
        check_shape(shapes[name], (rows,), name, file)
    if "next_observations" in shapes:
        check_shape(shapes["next_observations"], (rows, observation_dim), "next_observations", file)
    return rows, observation_dim, shapes["actions"][1]
