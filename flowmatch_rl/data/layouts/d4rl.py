"""Files as D4RL stores them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.data.layouts.arrays import BLOCK_ROWS, existing, flags
from flowmatch_rl.data.layouts.base import ArrayLayout, Rows, vector_names
from flowmatch_rl.data.layouts.hdf5 import members, open_hdf5
from flowmatch_rl.data.layouts.steps import StepFile, ends, step_dimensions
from flowmatch_rl.data.transitions.store import StoreInfo

_ARRAYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


@dataclass(frozen=True)
class D4rlFile(ArrayLayout):
    """An HDF5 file of D4RL.

    It holds ``observations`` (N, S), ``actions`` (N, A), ``rewards``, ``terminals`` and ``timeouts`` (N,), and perhaps
    ``next_observations`` (N, S). Without them each row arrives where the next one starts, and the last row of a
    trajectory gives no transition, since the file does not hold where it arrived: what follows is the start of another
    trajectory. Such files thus hold no terminations. Without ``timeouts`` a trajectory ends after
    ``max_episode_steps``, or where the next row does not start at the state arrived at.

    Args:
        path: The file, perhaps compressed by gzip.
        max_episode_steps: Steps after which a trajectory was cut, at least 1, for a file without ``timeouts``.
        columns: Names of the entries of an observation; by default ``observation_0`` and so on.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.
    """

    max_episode_steps: int | None = field(default=None, kw_only=True)

    def describe(self) -> StoreInfo:
        """Read the shapes and the ends of trajectories."""
        check_range("[1, inf)", max_episode_steps=self.max_episode_steps)
        file = self._file()
        with open_hdf5(file) as opened:
            arrays = _arrays(opened, file)
            number, observation_dim, action_dim = _dimensions(arrays, file)
            terminals = flags(arrays["terminals"][()], number, "terminals", file)
            last = self._last(arrays, terminals, file)
        remarks = []
        if "timeouts" not in arrays:
            where = "where the next row starts elsewhere"
            where = where if self.max_episode_steps is None else f"after {self.max_episode_steps} steps"
            remarks.append(f"the file has no timeouts: trajectories that do not terminate end {where}")
        if "next_observations" not in arrays:
            number -= int(last.sum())
            if lost := int(terminals.sum()):
                remarks.append(
                    f"{lost} terminations are left out: the file does not hold the states that they arrive at"
                )
        columns = self.column_names(vector_names("observation", observation_dim))
        return self.description(columns, action_dim, number, remarks=remarks)

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, slice by slice."""
        file = self._file()
        with open_hdf5(file) as opened:
            arrays = _arrays(opened, file)
            number, *_ = _dimensions(arrays, file)
            terminals = flags(arrays["terminals"][()], number, "terminals", file)
            # Without arrival states no row of a termination is kept.
            yield from StepFile(file, arrays, terminals, self._last(arrays, terminals, file)).rows()

    def _last(self, arrays: Mapping[str, h5py.Dataset], terminals: np.ndarray, file: Path) -> np.ndarray:
        """Whether rows are the last of their trajectories."""
        if "timeouts" in arrays:
            return ends(terminals | flags(arrays["timeouts"][()], len(terminals), "timeouts", file))
        if self.max_episode_steps is not None:
            return ends(_cut(terminals, self.max_episode_steps))
        if "next_observations" not in arrays:
            raise UserError(
                f"{str(file)!r} has neither 'timeouts' nor 'next_observations' and does not tell where trajectories "
                "end; give max_episode_steps, after which they were cut"
            )
        return ends(terminals | _starts_elsewhere(arrays["observations"], arrays["next_observations"]))

    def _file(self) -> Path:
        return existing(self.path, "an HDF5 file of D4RL")


def _arrays(opened: h5py.File, file: Path) -> dict[str, h5py.Dataset]:
    held = members(opened, _ARRAYS, file)
    return {name: array for name, array in held.items() if isinstance(array, h5py.Dataset)}


def _dimensions(arrays: Mapping[str, h5py.Dataset], file: Path) -> tuple[int, int, int]:
    flag_names = ("rewards", "terminals", *(name for name in ("timeouts",) if name in arrays))
    return step_dimensions({name: array.shape for name, array in arrays.items()}, flag_names, file)


def _cut(terminals: np.ndarray, steps: int) -> np.ndarray:
    """Ends of trajectories that terminate or are cut after some steps, boolean, shape (N,)."""
    last, start = terminals.copy(), 0
    for end in [*np.flatnonzero(terminals), len(terminals)]:
        last[start + steps - 1 : end : steps] = True
        start = end + 1
    return last


def _starts_elsewhere(starts: h5py.Dataset, arrivals: h5py.Dataset) -> np.ndarray:
    """Whether the row after each does not start where it arrived, boolean, shape (N,)."""
    number = len(starts)
    parts = [
        (starts[begin + 1 : begin + 1 + BLOCK_ROWS] != arrivals[begin : min(begin + BLOCK_ROWS, number - 1)]).any(1)
        for begin in range(0, number - 1, BLOCK_ROWS)
    ]
    return np.concatenate([*parts, [True]])
