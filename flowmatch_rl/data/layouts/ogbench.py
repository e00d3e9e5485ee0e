"""Files as OGBench stores them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import (
    existing,
    flags,
    npz_shapes,
    numbered_files,
    numbers,
    read_npz,
    require_arrays,
    same_dimensions,
)
from flowmatch_rl.data.layouts.base import ArrayLayout, Rows, vector_names
from flowmatch_rl.data.layouts.steps import OPTIONAL_VECTORS, StepFile, ends, step_dimensions
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.envs.ogbench import OgbenchEnvironment, TaskReward

_REQUIRED = ("observations", "actions", "terminals")


@dataclass(frozen=True)
class OgbenchFile(ArrayLayout):
    """A ``.npz`` file of OGBench, or a folder with the files of one large data set.

    It holds ``observations`` (N, S), ``actions`` (N, A) and ``terminals`` (N,), which is 1 in the last row of each
    trajectory, for whatever reason it ended: ends are time limits. In the compact form each row arrives where the next
    one starts, and the last row of a trajectory is an observation without a transition; with ``next_observations``
    every row is a transition. Files written from what OGBench loads as compact also flag the row before; they have
    ``valids`` (N,), which is 0 in the last row of each trajectory. Where the file holds ``rewards`` (N,) they are
    taken, otherwise the data set has none; ``masks`` (N,) are 0 where the arrival is terminal.

    OGBench's data sets have no rewards but the full state, ``qpos`` and, where there are buttons, ``button_states``.
    With a task both rewards and ends are computed from it, by OGBench's own rule: a step that begins where the task is
    solved is rewarded with 0 and terminates.

    Args:
        path: The file; of a folder all ``.npz`` files in the order of their numbers, but for ``*-val.npz``.
        columns: Names of the entries of an observation; by default ``observation_0`` and so on.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.
        task: Task of OGBench whose rewards to compute; None for those in the file.
    """

    task: OgbenchEnvironment | None = field(default=None, kw_only=True)

    def describe(self) -> StoreInfo:
        """Read the shapes and the ends of trajectories."""
        files = self._files()
        sizes = [_size(file) for file in files]
        observation_dim, action_dim = same_dimensions(files, [dims for _, dims in sizes])
        if self.task is not None:
            reward = TaskReward(self.task)
            for file in files:
                _check_states(npz_shapes(file), reward, file)
        columns = self.column_names(vector_names("observation", observation_dim))
        has_rewards = self.task is not None or all("rewards" in npz_shapes(file) for file in files)
        steps = sum(number for number, _ in sizes)
        return self.description(columns, action_dim, steps, has_rewards=has_rewards)

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, file by file; one file is in memory at a time."""
        reward = None if self.task is None else TaskReward(self.task)
        for file in self._files():
            arrays = read_npz(file, (*_REQUIRED, "next_observations", *OPTIONAL_VECTORS))
            if reward is not None:
                arrays |= _task_arrays(read_npz(file, list(reward.widths)), reward, file)
            number, *_ = step_dimensions({key: array.shape for key, array in arrays.items()}, ("terminals",), file)
            terminated = np.zeros(number, bool)
            if "masks" in arrays:
                terminated = ~flags(arrays["masks"], number, "masks", file)
            yield from StepFile(file, arrays, terminated, _last(arrays, number, file)).rows()

    def _files(self) -> list[Path]:
        path = existing(self.path, "a .npz file of OGBench, or a folder of them")
        return [path] if path.is_file() else numbered_files(path, but="*-val.npz")


def _size(file: Path) -> tuple[int, tuple[int, int]]:
    """Transitions of a file, and its dimensions."""
    shapes = npz_shapes(file)
    number, *dimensions = step_dimensions(shapes, ("terminals",), file)
    if "next_observations" not in shapes:
        number -= int(_last(read_npz(file, ("terminals", "valids")), number, file).sum())
    return number, (dimensions[0], dimensions[1])


def _check_states(shapes: Mapping[str, tuple[int, ...]], reward: TaskReward, file: Path) -> None:
    """Raise unless a file holds states as a task's environment has them."""
    require_arrays(shapes, list(reward.widths), file)
    rows = shapes["actions"][0]
    for name, width in reward.widths.items():
        if shapes[name] != (rows, width):
            raise UserError(
                f"{name!r} of {str(file)!r} has shape {shapes[name]}, wanted {(rows, width)}, {reward.task.name}'s"
            )


def _task_arrays(states: Mapping[str, np.ndarray], reward: TaskReward, file: Path) -> dict[str, np.ndarray]:
    """Rewards and masks of a task in the states of a file."""
    finite = {name: numbers(states[name], (None, width), name, file) for name, width in reward.widths.items()}
    rewards, solved = reward(finite)
    return {"rewards": rewards, "masks": 1.0 - solved}


def _last(arrays: Mapping[str, np.ndarray], number: int, file: Path) -> np.ndarray:
    """Whether rows are the last of their trajectories."""
    if "valids" in arrays:
        return ends(~flags(arrays["valids"], number, "valids", file))
    return ends(flags(arrays["terminals"], number, "terminals", file))
