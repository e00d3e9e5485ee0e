"""HDF5 files of other people: opened, perhaps unpacked, and kept from leading to other files."""

import contextlib
import gzip
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.arrays import readable, require_arrays

_GZIP = b"\x1f\x8b"


@contextlib.contextmanager
def open_hdf5(file: Path) -> Iterator[h5py.File]:
    """An HDF5 file, for reading; of one that is compressed by gzip a temporary copy.

    Raises:
        UserError: If it is not one, or is damaged.
    """
    with readable(file), _unpacked(file) as content, h5py.File(content, "r") as opened:
        yield opened


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[Any]:
    with file.open("rb") as stream:
        compressed = stream.read(len(_GZIP)) == _GZIP
    if not compressed:
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        with gzip.open(file) as packed:
            shutil.copyfileobj(packed, copy)
        copy.seek(0)
        yield copy


def members(group: h5py.Group, names: Iterable[str], place: Path | str) -> dict[str, h5py.Group | h5py.Dataset]:
    """Arrays and groups of a group, by name; names that it lacks are left out.

    A file that came from elsewhere must not lead to other files of the machine, so links to them are refused.

    Raises:
        UserError: If one of them is a link to another file or to nothing, or an array whose numbers are in another.
    """
    held: dict[str, h5py.Group | h5py.Dataset] = {}
    for name in names:
        if name not in group.keys():  # noqa: SIM118 - "in" follows links
            continue
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise _refused(name, place, "is a link to another file")
        value: Any = group.get(name)
        if value is None:
            raise _refused(name, place, "is a link to nowhere")
        if value.file.filename != group.file.filename or (isinstance(value, h5py.Dataset) and _is_elsewhere(value)):
            raise _refused(name, place, "holds what is in another file")
        held[name] = value
    return held


def _refused(name: str, place: Path | str, what: str) -> UserError:
    return UserError(f"{name!r} of {str(place)!r} {what}; files must hold their data themselves")


def _is_elsewhere(array: h5py.Dataset) -> bool:
    """Whether the numbers of an array are in other files."""
    return bool(array.external) or (
        array.is_virtual and any(source.file_name != "." for source in array.virtual_sources())
    )


def stored_array(group: h5py.Group, name: str, place: Path | str) -> h5py.Dataset:
    """An array of an HDF5 group, not yet read.

    Raises:
        UserError: If it is missing, is a group itself, or in another file.
    """
    require_arrays(group.keys(), [name], place)
    array = members(group, [name], place)[name]
    if not isinstance(array, h5py.Dataset):
        raise UserError(f"{name!r} of {str(place)!r} is a group, wanted one array")
    return array
