"""Tables in files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tensordict import TensorDict

from flowmatch_rl.checks import MissingFileError, UserError, check_word
from flowmatch_rl.data.tables.datasets import Dataset
from flowmatch_rl.data.tables.numbers import Decimal
from flowmatch_rl.data.tables.text import read_text

_TEXT = (".csv", ".tsv", ".txt")
_WANTED = ".npy, .npz, .csv, .tsv, .txt, .parquet, or a folder that holds a memory-mapped TensorDict"


def is_table(file: Path) -> bool:
    """Whether a file, by the end of its name, or a folder, by what it holds, is one that ``TableFile`` reads."""
    if file.is_dir():
        return (file / "meta.json").exists()
    name = file.name.lower()
    return name.removesuffix(".gz").endswith(_TEXT) or name.endswith(tuple(_READERS))


@dataclass(frozen=True)
class TableFile(Dataset):
    """A table of your own.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.txt`` file, perhaps compressed to ``.gz``; a ``.parquet`` file; a ``.npy`` file
            with a matrix, whose columns are named "0", "1" and so on; a ``.npz`` file, or a folder of a TensorDict
            saved by ``memmap``, in which a vector gives a column of its name, and a matrix called ``name`` the columns
            ``name[0]``, ``name[1]`` and so on.
        separator: Character between the values of a text file; found from its first lines if None.
        decimal: Decimal sign of a text file, ``.`` or ``,``; found from its numbers if None.

    Raises:
        UserError: If the separator is not one character, or ``decimal`` another sign.
    """

    path: str
    separator: str | None = None
    decimal: Decimal | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and len(self.separator.replace("\\t", "\t")) != 1:
            raise UserError(f"separator must be one character, got {self.separator!r}")
        check_word((".", ","), **({} if self.decimal is None else {"decimal": self.decimal}))

    @property
    def label(self) -> str:
        """Short name, for titles and run names."""
        file = Path(self.path)
        return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem

    def load(self) -> pd.DataFrame:
        """Read the table."""
        return read_table(self.path, self.separator, self.decimal)


def read_table(path: str, separator: str | None = None, decimal: Decimal | None = None) -> pd.DataFrame:
    """Read a file as a table.

    Args:
        path: See ``TableFile``.
        separator: Character between the values of a text file; found from its first lines if None.
        decimal: Decimal sign of a text file; found from its numbers if None.

    Returns:
        The table. Its rows are labelled as the lines of a text file are, from 1, with an index called "line"; others
        are counted from 0. ``attrs["remarks"]`` of a text file holds what was left out or is in doubt, a phrase each,
        ``attrs["units"]`` the units of its columns by name, if it has a line of them.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is of another kind, cannot be read, or does not hold columns of numbers and text.
    """
    file = Path(path)
    if not file.exists():
        raise MissingFileError(f"there is no table {path!r}; wanted {_WANTED}")
    suffix = "folder" if file.is_dir() else Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in (*_READERS, *_TEXT) or (file.suffix.lower() == ".gz" and suffix not in _TEXT):
        raise UserError(f"{path!r} is not a table; wanted {_WANTED}")
    try:
        frame = read_text(file, separator, decimal) if suffix in _TEXT else _READERS[suffix](file)
    # Readers raise what their libraries do, and a damaged file may raise anything.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the table {path!r}: {reason}") from error
    frame.columns = frame.columns.map(str)
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        raise UserError(f"the table {path!r} has two columns named {doubled[0]!r}")
    return frame if suffix in _TEXT else frame.reset_index(drop=True)


def _read_npy(file: Path) -> pd.DataFrame:
    array = np.load(file, allow_pickle=False)
    if array.ndim != 2:
        raise UserError(f"it holds an array of shape {array.shape}, wanted a matrix with one row per sample")
    return pd.DataFrame(_values(array, "the matrix"))


def _read_npz(file: Path) -> pd.DataFrame:
    with np.load(file, allow_pickle=False) as arrays:
        return _join(dict(arrays))


def _read_parquet(file: Path) -> pd.DataFrame:
    return pd.read_parquet(file)


def _read_folder(folder: Path) -> pd.DataFrame:
    if not (folder / "meta.json").exists():
        raise UserError("the folder has no meta.json, which a memory-mapped TensorDict has")
    held = TensorDict.load_memmap(folder, allow_pickle=False)
    if not held.batch_dims:
        raise UserError("the TensorDict has no batch dimension, wanted one row per sample")
    arrays = {}
    for key, value in held.reshape(-1).flatten_keys("/").items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"the entry {key!r} is a {type(value).__name__}, wanted a tensor")
        # NumPy has no bfloat16.
        arrays[key] = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return _join(arrays)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
    "folder": _read_folder,
}


def _join(arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One table of vectors and matrices with the same number of rows."""
    if not arrays:
        raise UserError("it holds no arrays")
    columns: list[pd.DataFrame] = []
    first = next(iter(arrays))
    for name, array in arrays.items():
        if array.ndim not in (1, 2):
            raise UserError(f"{name!r} has shape {array.shape}, wanted a vector or a matrix with one row per sample")
        if len(array) != len(arrays[first]):
            raise UserError(f"{name!r} has {len(array)} rows, but {first!r} has {len(arrays[first])}")
        names = [name] if array.ndim == 1 else [f"{name}[{place}]" for place in range(array.shape[1])]
        columns.append(pd.DataFrame(_values(array, repr(name)).reshape(len(array), -1), columns=names))
    return pd.concat(columns, axis=1)


def _values(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "biufU":
        raise UserError(f"{name} is of type {array.dtype}, wanted numbers or text")
    return array
