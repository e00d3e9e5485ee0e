"""Arrays in files of other people: opened, measured and checked, with messages of one line."""

import contextlib
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from flowmatch_rl.checks import MissingFileError, UserError

BLOCK_ROWS = 50_000
"""Rows of a long file that are read at a time."""


def existing(path: str, wanted: str) -> Path:
    """A path that exists.

    Args:
        path: The path.
        wanted: What should be there, for the message.

    Raises:
        MissingFileError: If nothing is there.
    """
    if not Path(path).exists():
        raise MissingFileError(f"there is no {path!r}; wanted {wanted}")
    return Path(path)


def numbered_files(folder: Path, but: str = "") -> list[Path]:
    """The ``.npz`` files of a folder, those with numbers in their names by the value of the numbers.

    Args:
        folder: The folder.
        but: Pattern of the names to leave out.

    Raises:
        UserError: If there are none.
    """
    files = [file for file in folder.glob("*.npz") if not (but and file.match(but))]
    if not files:
        raise UserError(f"{str(folder)!r} holds no .npz files")
    return sorted(files, key=lambda file: by_number(file.name))


def by_number(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by, numbers in them by their value: ``episode_2`` before ``episode_10``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def same_dimensions(files: Sequence[Path], dimensions: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Dimensions of the observations and actions of several files.

    Raises:
        UserError: Naming the first file whose dimensions are not those of the first one.
    """
    for file, got in zip(files, dimensions, strict=True):
        if got != dimensions[0]:
            raise UserError(
                f"observations and actions of {str(file)!r} are of dimensions {got[0]} and {got[1]}, wanted "
                f"{dimensions[0][0]} and {dimensions[0][1]} as in {files[0].name!r}"
            )
    return dimensions[0]


@contextlib.contextmanager
def readable(place: Path | str) -> Iterator[None]:
    """Turn what libraries raise about a damaged file into one line.

    Raises:
        UserError: Naming the file and the reason.
    """
    try:
        yield
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read {str(place)!r}: {reason}") from error


def npz_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays in a ``.npz`` file, from their headers alone.

    Raises:
        UserError: If it is not such a file.
    """
    with readable(file), zipfile.ZipFile(file) as archive:
        return {name.removesuffix(".npy"): _npy_shape(archive, name, file) for name in archive.namelist()}


def _npy_shape(archive: zipfile.ZipFile, name: str, file: Path) -> tuple[int, ...]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(name) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            return readers[version](stream)[0]
        except (ValueError, KeyError) as error:
            raise UserError(f"cannot read {name!r} of {str(file)!r}: it is not an array of numbers") from error


def read_npz(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Those arrays of a ``.npz`` file that are among ``names``.

    Raises:
        UserError: If it cannot be read.
    """
    with readable(file):
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names if name in arrays}
        except ValueError as error:  # of objects, of an empty file and of a damaged one
            raise UserError(f"cannot read {str(file)!r}: {' '.join(str(error).split())}") from error


def require_arrays(held: Collection[str], names: Sequence[str], place: Path | str) -> None:
    """Refuse a file that lacks an array.

    Raises:
        UserError: Naming the first missing array, and those that there are.
    """
    for name in names:
        if name not in held:
            there = ", ".join(sorted(held)) or "no arrays"
            raise UserError(f"{str(place)!r} lacks the array {name!r}; it holds {there}")


def check_shape(shape: tuple[int, ...], wanted: tuple[int | None, ...], key: str, place: Path | str) -> None:
    """Refuse a shape. A vector may have a second dimension of 1.

    Args:
        shape: The shape received.
        wanted: The shape wanted, None for a dimension of any positive size.
        key: Name of the array.
        place: Its file.

    Raises:
        UserError: If they differ.
    """
    plain = shape[:1] if len(wanted) == 1 and shape[1:] == (1,) else shape
    if len(plain) != len(wanted) or any(n != m if m is not None else n < 1 for n, m in zip(plain, wanted, strict=True)):
        raise UserError(f"{key!r} of {str(place)!r} has shape {tuple(shape)}, wanted {_shape_words(wanted)}")


def _shape_words(wanted: tuple[int | None, ...]) -> str:
    """A shape in words, such as ``4 rows of 3 numbers``."""
    words = ["" if size is None else f"{size} " for size in wanted]
    return f"{words[0]}numbers" if len(words) == 1 else f"{words[0]}rows of {words[1]}numbers"


def numbers(
    values: np.ndarray, wanted: tuple[int | None, ...], key: str, place: Path | str, first_row: int = 0
) -> np.ndarray:
    """An array of finite numbers.

    Args:
        values: What the file holds.
        wanted: Shape, as in ``check_shape``.
        key: Name of the array.
        place: Its file.
        first_row: Row of the file that the first of these is.

    Returns:
        The numbers, float64, of ``len(wanted)`` dimensions.

    Raises:
        UserError: If the array has another shape, holds something else, or numbers that are not finite in single
            precision.
    """
    check_shape(values.shape, wanted, key, place)
    if values.dtype.kind not in "biuf":
        raise UserError(f"{key!r} of {str(place)!r} is of type {values.dtype}, wanted numbers")
    plain = np.asarray(values, np.float64).reshape(values.shape[: len(wanted)])
    fits = np.abs(plain) <= np.finfo(np.float32).max
    if not fits.all():
        row = int(np.flatnonzero(~fits.reshape(len(fits), -1).all(1))[0])
        worst = plain[row][~fits[row]].flat[0]
        raise UserError(f"{key!r} of {str(place)!r} holds {worst} in row {first_row + row}, wanted finite numbers")
    return plain


def flags(values: np.ndarray, length: int, key: str, place: Path | str) -> np.ndarray:
    """An array of booleans, or of zeros and ones.

    Returns:
        Boolean array of shape (length,).

    Raises:
        UserError: If the array has another shape, or other values.
    """
    plain = numbers(values, (length,), key, place)
    wrong = np.flatnonzero((plain != 0.0) & (plain != 1.0))
    if len(wrong):
        raise UserError(f"{key!r} of {str(place)!r} holds {plain[wrong[0]]:g} in row {wrong[0]}, wanted 0 or 1")
    return plain == 1.0
