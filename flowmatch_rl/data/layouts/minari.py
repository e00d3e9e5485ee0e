"""Data sets as Minari stores them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import (
    by_number,
    check_shape,
    existing,
    flags,
    numbers,
    require_arrays,
)
from flowmatch_rl.data.layouts.base import ArrayLayout, Rows, vector_names
from flowmatch_rl.data.layouts.hdf5 import members, open_hdf5, stored_array
from flowmatch_rl.data.layouts.steps import ends
from flowmatch_rl.data.transitions.store import StoreInfo

_VECTORS = ("rewards", "terminations", "truncations")


@dataclass(frozen=True)
class MinariFolder(ArrayLayout):
    """The folder of a data set of Minari, which holds ``data/main_data.hdf5`` and ``data/metadata.json``.

    An episode of T steps is a group ``episode_I`` with ``observations`` (T + 1, S), ``actions`` (T, A), ``rewards``,
    ``terminations`` and ``truncations`` (T,). Observations that are dictionaries are concatenated. Episodes without
    steps are left out.

    Args:
        path: The folder.
        observation_keys: Entries of observations that are dictionaries, in the order to concatenate them in, those of
            dictionaries within them as ``outer/inner``; by default all, sorted by name.
        columns: Names of the entries of an observation; by default ``observation_0`` and so on, or by the entries of
            the dictionary.
        action_low: Value in the files that becomes the action -1, one for all dimensions or one for each; needed
            where actions are not in [-1, 1].
        action_high: Value in the files that becomes the action 1.
    """

    observation_keys: list[str] | None = field(default=None, kw_only=True)

    def describe(self) -> StoreInfo:
        """Read the shapes of all episodes."""
        file = self._file()
        with open_hdf5(file) as opened:
            groups = _episode_groups(opened, file)
            held = {place: group for place, group in groups.items() if _has_steps(group, place)}
            if not held:
                raise UserError(f"{self.path!r} holds no transitions")
            episodes = [_Episode.of(group, self.observation_keys, place) for place, group in held.items()]
            names, action_dim = episodes[0].names, episodes[0].action_dim
            for episode in episodes:
                if (episode.names, episode.action_dim) != (names, action_dim):
                    raise UserError(
                        f"{episode.place!r} holds observations {', '.join(episode.names)} and actions of dimension "
                        f"{episode.action_dim}, wanted {', '.join(names)} and {action_dim} as in the first episode"
                    )
            steps = sum(episode.num_steps for episode in episodes)
        left_out = len(groups) - len(held)
        remarks = [f"{left_out} episode{' without steps is' if left_out == 1 else 's without steps are'} left out"]
        return self.description(self.column_names(names), action_dim, steps, remarks=remarks if left_out else [])

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, episode by episode in the order of their numbers."""
        file = self._file()
        with open_hdf5(file) as opened:
            for place, group in _episode_groups(opened, file).items():
                if _has_steps(group, place):
                    yield _Episode.of(group, self.observation_keys, place).rows()

    def _file(self) -> Path:
        """The file of the episodes, once the description beside it says that it is one."""
        folder = existing(self.path, "the folder of a data set of Minari") / "data"
        metadata = folder / "metadata.json"
        if not metadata.is_file():
            raise UserError(f"{self.path!r} is not the folder of a data set of Minari: it has no data/metadata.json")
        try:
            kind = json.loads(metadata.read_text(encoding="utf-8")).get("data_format", "hdf5")
        except (ValueError, AttributeError) as error:
            raise UserError(f"cannot read {str(metadata)!r}: {error}") from error
        if kind != "hdf5":
            raise UserError(f"the data set {self.path!r} is of the format {kind!r}, wanted 'hdf5'")
        return existing(str(folder / "main_data.hdf5"), "the episodes of a data set of Minari")


@dataclass(frozen=True)
class _Episode:
    """One episode: its place, arrays of observations by name, and the other arrays, none of them read."""

    place: str
    observations: dict[str, h5py.Dataset]
    others: dict[str, h5py.Dataset]

    @classmethod
    def of(cls, group: h5py.Group, keys: Sequence[str] | None, place: str) -> "_Episode":
        """Find the arrays of an episode and check their shapes."""
        others = {name: stored_array(group, name, place) for name in ("actions", *_VECTORS)}
        check_shape(others["actions"].shape, (None, None), "actions", place)
        steps = len(others["actions"])
        for name in _VECTORS:
            check_shape(others[name].shape, (steps,), name, place)
        observations = _observations(group, keys, place)
        vectors = [name for name, array in observations.items() if array.ndim <= 2]
        for name, array in observations.items():
            if array.ndim > 2 and vectors:
                raise UserError(
                    f"{name!r} of {place!r} has shape {array.shape}, wanted {steps + 1} rows of numbers; name the "
                    f"entries of the observation to use in observation_keys, such as {', '.join(vectors)}"
                )
            wanted = (steps + 1,) if array.ndim == 1 else (steps + 1, None)
            check_shape(array.shape, wanted, name, place)
        return cls(place, observations, others)

    @property
    def num_steps(self) -> int:
        """Number T of steps."""
        return len(self.others["actions"])

    @property
    def action_dim(self) -> int:
        """Dimension A of an action."""
        return self.others["actions"].shape[1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries of an observation."""
        parts = (
            [name] if array.ndim == 1 else vector_names(name, array.shape[1])
            for name, array in self.observations.items()
        )
        return tuple(name for part in parts for name in part)

    def rows(self) -> Rows:
        """Read the episode."""
        steps = self.num_steps
        parts = [
            numbers(array[()], array.shape, name, self.place).reshape(steps + 1, -1)
            for name, array in self.observations.items()
        ]
        observation = np.concatenate(parts, axis=1).astype(np.float32)
        terminated = flags(self.others["terminations"][()], steps, "terminations", self.place)
        truncated = flags(self.others["truncations"][()], steps, "truncations", self.place)
        return Rows(
            place=repr(self.place),
            observation=observation[:-1],
            action=numbers(self.others["actions"][()], (steps, self.action_dim), "actions", self.place),
            reward=numbers(self.others["rewards"][()], (steps,), "rewards", self.place).astype(np.float32),
            next_observation=observation[1:],
            terminated=terminated,
            truncated=truncated | (ends(truncated) & ~terminated),
        )


def _episode_groups(opened: h5py.File, file: Path) -> dict[str, h5py.Group]:
    """The episodes by their place, in the order of their numbers."""
    names = [name for name in sorted(map(str, opened), key=by_number) if name.startswith("episode_")]
    if not names:
        raise UserError(f"{str(file)!r} holds no episodes")
    groups: dict[str, h5py.Group] = {}
    for name, group in members(opened, names, file).items():
        if not isinstance(group, h5py.Group):
            raise UserError(f"{name!r} of {str(file)!r} is an array, wanted a group of arrays")
        groups[f"{file}/{name}"] = group
    return groups


def _has_steps(group: h5py.Group, place: str) -> bool:
    """Whether anything was done in an episode: some are recorded at a reset."""
    return stored_array(group, "actions", place).shape[:1] != (0,)


def _observations(group: h5py.Group, keys: Sequence[str] | None, place: str) -> dict[str, h5py.Dataset]:
    """Arrays of observations by name, in the order to concatenate them in."""
    require_arrays(group.keys(), ["observations"], place)
    held = members(group, ["observations"], place)["observations"]
    if isinstance(held, h5py.Dataset):
        if keys is not None:
            raise UserError(f"got observation_keys {', '.join(keys)}, but observations of {place!r} are one array")
        return {"observation": held}
    arrays = _leaves(held, f"{place}/observations")
    require_arrays(arrays, keys or [], f"{place}/observations")
    if not arrays:
        raise UserError(f"'observations' of {place!r} holds no arrays")
    return {name: arrays[name] for name in keys or sorted(arrays)}


def _leaves(group: h5py.Group, place: str, prefix: str = "") -> dict[str, h5py.Dataset]:
    """Arrays of a group and of the groups within it, by their path."""
    leaves: dict[str, h5py.Dataset] = {}
    for name, value in members(group, list(group), place).items():
        path = f"{prefix}{name}"
        leaves |= {path: value} if isinstance(value, h5py.Dataset) else _leaves(value, place, f"{path}/")
    return leaves
