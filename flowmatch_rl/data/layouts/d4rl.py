"""Files as D4RL stores them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from flowmatch_rl.data.layouts.arrays import existing, flags, open_hdf5
from flowmatch_rl.data.layouts.base import ArrayLayout, Rows, vector_names
from flowmatch_rl.data.layouts.steps import StepFile, ends, step_dimensions
from flowmatch_rl.data.transitions.store import StoreInfo

_FLAGS = ("terminals", "timeouts")


@dataclass(frozen=True)
class D4rlFile(ArrayLayout):
    """An HDF5 file of D4RL.

    It holds ``observations`` (N, S), ``actions`` (N, A), ``rewards``, ``terminals`` and ``timeouts`` (N,), and perhaps
    ``next_observations`` (N, S). Without them each row arrives where the next one starts, and the last row of a
    trajectory gives no transition, since the file does not hold where it arrived: what follows is the start of another
    trajectory. Such files thus hold no terminations.

    Args:
        path: The file.
        columns: Names of the entries of an observation; by default ``observation_0`` and so on.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.
    """

    def describe(self) -> StoreInfo:
        """Read the shapes and the ends of trajectories."""
        file = self._file()
        with open_hdf5(file) as opened:
            arrays = _arrays(opened)
            number, observation_dim, action_dim = _dimensions(arrays, file)
            terminals, timeouts = _flags(arrays, number, file)
        remarks = ()
        if "next_observations" not in arrays:
            number -= int(ends(terminals | timeouts).sum())
            if lost := int(terminals.sum()):
                remarks = (f"{lost} terminations are left out: the file does not hold the states that they arrive at",)
        columns = self.column_names(vector_names("observation", observation_dim))
        return self.description(columns, action_dim, number, remarks=remarks)

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, slice by slice."""
        file = self._file()
        with open_hdf5(file) as opened:
            arrays = _arrays(opened)
            number, *_ = _dimensions(arrays, file)
            terminals, timeouts = _flags(arrays, number, file)
            # Without arrival states no row of a termination is kept.
            yield from StepFile(file, arrays, terminals, ends(terminals | timeouts)).rows()

    def _file(self) -> Path:
        return existing(self.path, "an HDF5 file of D4RL")


def _arrays(opened: h5py.File) -> dict[str, h5py.Dataset]:
    return {name: array for name, array in opened.items() if isinstance(array, h5py.Dataset)}


def _dimensions(arrays: Mapping[str, h5py.Dataset], file: Path) -> tuple[int, int, int]:
    return step_dimensions({name: array.shape for name, array in arrays.items()}, ("rewards", *_FLAGS), file)


def _flags(arrays: Mapping[str, h5py.Dataset], number: int, file: Path) -> list[np.ndarray]:
    return [flags(arrays[name][()], number, name, file) for name in _FLAGS]
