"""The canonical data set of transitions on disk: a memory-mapped TensorDict, and a file that describes it.

A data set is a folder that holds ``transitions``, a TensorDict saved by ``memmap`` with one row per transition, and
``dataset.json``, and their checksums in ``SHA256SUMS``. While it is written it lies in ``NAME.partial`` beside its
place, and moves there when it is complete.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from flowmatch_rl.batches import (
    ACTION,
    DONE,
    EMBEDDING,
    NEXT_ACTION,
    NEXT_OBSERVATION,
    OBSERVATION,
    REWARD,
    TERMINATED,
    TRUNCATED,
)
from flowmatch_rl.checks import MissingFileError, UserError, check_range, first_names
from flowmatch_rl.data.transitions.checksums import check_checksums
from flowmatch_rl.data.transitions.moments import column_moments
from flowmatch_rl.schema import ActionBounds, TableSchema, with_unit
from flowmatch_rl.types import Reward

FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
TRANSITIONS_FOLDER = "transitions"
PROGRESS_FILE = "progress.json"
"""Marks a folder in which a data set is being written."""

_ROWS_AT_A_TIME = 2**18

ADDED_ENTRIES: Mapping[str, Any] = {"action_columns": [], "units": {}, "has_rewards": True}
"""Entries that descriptions have been given since the format was fixed, and what they are where they are missing."""


@dataclass(frozen=True)
class Entry:
    """One entry of the transitions.

    Attributes:
        key: Its key in the TensorDict.
        width: Numbers per row.
        dtype: Their type.
    """

    key: str | tuple[str, ...]
    width: int
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The key as text, such as ``next/reward``."""
        return self.key if isinstance(self.key, str) else "/".join(self.key)

    @property
    def file(self) -> str:
        """The file of the entry, relative to the folder of the transitions."""
        return f"{self.name}.memmap"

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return self.width * self.dtype.itemsize


def entries_of(
    observation_dim: int, action_dim: int, embedding_dim: int = 0, has_next_action: bool = False
) -> tuple[Entry, ...]:
    """The entries of a data set, in a fixed order; the arguments are those of ``StoreInfo``."""
    entries = [
        Entry(OBSERVATION, observation_dim, torch.float32),
        Entry(ACTION, action_dim, torch.float32),
        Entry(NEXT_OBSERVATION, observation_dim, torch.float32),
        Entry(REWARD, 1, torch.float32),
        Entry(TERMINATED, 1, torch.bool),
        Entry(TRUNCATED, 1, torch.bool),
        Entry(DONE, 1, torch.bool),
    ]
    if has_next_action:
        entries.append(Entry(NEXT_ACTION, action_dim, torch.float32))
    if embedding_dim:
        entries.append(Entry(EMBEDDING, embedding_dim, torch.float32))
    return tuple(entries)


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """Description of a data set. ``TransitionWriter.finish`` fills in the statistics, which have defaults.

    Attributes:
        num_transitions: Number N of rows.
        columns: Names of the S entries of an observation.
        action_dim: Dimension A of an action.
        ordered: Whether rows are consecutive steps of trajectories, which end where ``done`` is true; otherwise they
            are a shuffled table.
        action_low: Lower bounds of the actions in the environment's unit, or None if they are not known.
        action_high: Upper bounds, or None.
        embedding_dim: Dimension Z of the embedding of the policy that acted; 0 if there is none.
        has_next_action: Whether the rows hold the action taken in the next observation.
        action_columns: Names of the A entries of an action; empty if they have none.
        units: Units of columns and of entries of the action by their names, as text such as ``rad``; those that are not
            known are left out.
        has_rewards: Whether the source held rewards; otherwise those of the rows are 0 and mean nothing.
        provenance: How the data were made; JSON.
        observation_mean: Mean of each column over all observations, in its own unit.
        observation_std: Standard deviation of each (divisor N); 1 for a constant column.
        reward_mean: Mean reward per step.
        reward_std: Its standard deviation; 1 for a constant reward.
        num_trajectories: Number of trajectories, or None if the rows are not ordered.
        format_version: Version of the format on disk.

    Raises:
        UserError: If a number is out of its range, two columns have one name, the bounds do not fit, or a unit is of no
            column.
    """

    num_transitions: int
    columns: tuple[str, ...]
    action_dim: int
    ordered: bool
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    embedding_dim: int = 0
    has_next_action: bool = False
    action_columns: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    has_rewards: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)
    observation_mean: tuple[float, ...] = ()
    observation_std: tuple[float, ...] = ()
    reward_mean: float = 0.0
    reward_std: float = 1.0
    num_trajectories: int | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_range(
            "[1, inf)",
            num_transitions=self.num_transitions,
            action_dim=self.action_dim,
            **{"the number of columns": self.observation_dim},
        )
        check_range("[0, inf)", embedding_dim=self.embedding_dim)
        for names in (self.columns, self.action_columns):
            if doubled := [name for place, name in enumerate(names) if name in names[:place]]:
                raise UserError(f"two columns are named {doubled[0]!r}")
        if len(self.action_columns) not in (0, self.action_dim):
            raise UserError(f"action_columns must be {self.action_dim} names or none, got {list(self.action_columns)}")
        named = (*self.columns, *self.action_columns)
        if unknown := [name for name in self.units if name not in named]:
            raise UserError(f"units has {unknown[0]!r}, which is no column; wanted some of {first_names(named)}")
        bounds = self.action_low, self.action_high
        if bounds != (None, None) and {None if bound is None else len(bound) for bound in bounds} != {self.action_dim}:
            raise UserError(
                f"action_low and action_high must both be None or of {self.action_dim} numbers, got {list(bounds)}"
            )

    @property
    def action_bounds(self) -> ActionBounds | None:
        """Bounds of the actions in the environment's unit, or None if they are not known."""
        if self.action_low is None or self.action_high is None:
            return None
        return ActionBounds(self.action_low, self.action_high)

    @property
    def observation_dim(self) -> int:
        """Dimension S of an observation."""
        return len(self.columns)

    @property
    def column_units(self) -> tuple[str, ...]:
        """Unit of each column; empty where it is not known."""
        return tuple(self.units.get(name, "") for name in self.columns)

    @property
    def schema(self) -> TableSchema:
        """Names and units of the columns, and their means and standard deviations."""
        units = self.column_units if any(self.column_units) else ()
        return TableSchema(self.columns, self.observation_mean, self.observation_std, units=units)

    @property
    def observation_moments(self) -> torch.Tensor:
        """Count, mean and sum of squared deviations of each column, float64, shape (3, S).

        A constant column has those of the deviation 1 that it is described with.
        """
        mean, std = torch.tensor([self.observation_mean, self.observation_std], dtype=torch.float64)
        count = torch.full_like(mean, self.num_transitions)
        return torch.stack([count, mean, count * std.square()])

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns with their units, such as ``speed [m/s]``."""
        return tuple(map(with_unit, self.columns, self.column_units))

    @property
    def action_labels(self) -> tuple[str, ...]:
        """Names of the entries of the action with their units; empty if they have none."""
        return tuple(with_unit(name, self.units.get(name, "")) for name in self.action_columns)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of the transitions."""
        return entries_of(self.observation_dim, self.action_dim, self.embedding_dim, self.has_next_action)


@dataclass(frozen=True, eq=False)
class TransitionStore:
    """A data set of transitions, which stays on disk; use ``open`` to get one.

    Attributes:
        path: Folder of the data set.
        info: Its description.
        transitions: Memory-mapped rows, batch size (N,), keys as TorchRL names them: ``observation`` (N, S), ``action``
            in [-1, 1] (N, A), ``next`` with ``observation`` (N, S) and ``reward``, ``terminated``, ``truncated`` and
            ``done`` (N, 1); perhaps ``next/action`` (N, A) and ``embedding`` (N, Z). Writing into it changes the
            files.
    """

    path: Path
    info: StoreInfo
    transitions: TensorDict

    def __len__(self) -> int:
        return self.info.num_transitions

    @classmethod
    def open(cls, path: str | Path) -> "TransitionStore":
        """Open a data set without reading its rows.

        Args:
            path: Its folder.

        Returns:
            The data set.

        Raises:
            MissingFileError: If there is no such folder.
            UserError: If it is not a complete data set, or of another version of the format.
        """
        path = Path(path)
        info = _read_info(path)
        folder = path / TRANSITIONS_FOLDER
        # The sizes are checked before the files are mapped: mapping a file that is too short lengthens it.
        for entry in info.entries:
            file = folder / entry.file
            got = file.stat().st_size if file.is_file() else None
            wanted = info.num_transitions * entry.row_bytes
            if got != wanted:
                size = "is missing" if got is None else f"has {got} bytes ({got / entry.row_bytes:g} rows)"
                raise UserError(
                    f"the data set {str(path)!r} is damaged: {entry.file} {size}, but {INFO_FILE} says "
                    f"{info.num_transitions} rows, which take {wanted} bytes; copy or make the data set again"
                )
        try:
            transitions = TensorDict.load_memmap(folder, allow_pickle=False)
        # TensorDict raises what its readers do.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the data set {str(path)!r} is damaged: TensorDict cannot read it: {reason}") from error
        if tuple(transitions.batch_size) != (info.num_transitions,):
            raise UserError(
                f"the data set {str(path)!r} is damaged: its TensorDict is of batch size "
                f"{tuple(transitions.batch_size)}, wanted ({info.num_transitions},)"
            )
        return cls(path, info, transitions)

    @property
    def reward_moments(self) -> torch.Tensor:
        """Count, mean and sum of squared deviations of the rewards, float64, shape (3, 1)."""
        mean, std = self.info.reward_mean, self.info.reward_std
        # A constant reward is described with the deviation 1.
        first = float(self.transitions.get(REWARD)[0])
        squares = 0.0 if mean == first and std == 1.0 else len(self) * std**2
        return torch.tensor([[len(self)], [mean], [squares]], dtype=torch.float64)

    def require_rewards(self) -> None:
        """Refuse a data set whose rewards mean nothing.

        Raises:
            UserError: If its source held no rewards.
        """
        if not self.info.has_rewards:
            raise UserError(
                f"the data set {str(self.path)!r} has no rewards to learn values from; name their column when it is "
                "converted, set data.reward, or imitate its actions instead"
            )

    @torch.no_grad()
    def relabelled(self, reward: Reward) -> "TransitionStore":
        """The same data set with other rewards, which are held in memory; nothing is written.

        Args:
            reward: Reward for the state that a step arrives in.

        Raises:
            UserError: If the reward needs a column that the data set lacks, or is not finite somewhere.
        """
        arrivals = self.transitions.get(NEXT_OBSERVATION)
        parts = [reward.evaluate(rows, self.info.columns) for rows in arrivals.split(_ROWS_AT_A_TIME)]
        rewards = torch.cat(parts).float()[:, None]
        if wrong := int((~rewards.isfinite()).sum()):
            raise UserError(
                f"the reward {reward} is not finite in {wrong:,} of the {len(self):,} states arrived in of {self.path}"
            )
        mean, std = column_moments(iter([rewards.numpy()]))
        info = dataclasses.replace(self.info, has_rewards=True, reward_mean=mean.item(), reward_std=std.item())
        return TransitionStore(self.path, info, self.transitions.copy().set(REWARD, rewards))

    def verify(self) -> None:
        """Compare the files with their checksums, which reads them all; a data set without checksums passes.

        Raises:
            UserError: If a file is not what was written.
        """
        arrays = (f"{TRANSITIONS_FOLDER}/{entry.file}" for entry in self.info.entries)
        check_checksums(self.path, [INFO_FILE, *arrays])


def partial_path(path: Path) -> Path:
    """The folder in which the data set of a path is written."""
    return path.with_name(f"{path.name}.partial")


def _read_info(path: Path) -> StoreInfo:
    for folder in (path, partial_path(path)):
        if (folder / PROGRESS_FILE).is_file() and not (path / INFO_FILE).is_file():
            rows = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))["rows_written"]
            raise UserError(
                f"the data set {str(path)!r} is not finished ({rows} rows are written); run the command that made it "
                "again, which resumes where it was interrupted"
            )
    if not path.is_dir():
        raise MissingFileError(f"there is no data set {str(path)!r}; flowmatch-rl collect and convert make one")
    if not (path / INFO_FILE).is_file():
        raise UserError(f"{str(path)!r} is not a data set of transitions: the folder has no {INFO_FILE}")
    try:
        fields = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"cannot read {str(path / INFO_FILE)!r}: {error}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"the data set {str(path)!r} has format version {version}, wanted {FORMAT_VERSION}; make it again"
        )
    fields = {**ADDED_ENTRIES, **fields}
    known = {item.name for item in dataclasses.fields(StoreInfo)}
    if fields.keys() != known:
        wrong = sorted(fields.keys() ^ known)[0]
        raise UserError(f"{str(path / INFO_FILE)!r} has {'an unknown' if wrong in fields else 'no'} entry {wrong!r}")
    # JSON has no tuples.
    values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in fields.items()}
    return StoreInfo(**values)
