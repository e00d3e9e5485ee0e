"""Tables in text files: where the rows begin, what separates values, and on which line of the file a row stands."""

import csv
import gzip
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.tables.numbers import Decimal, is_number, is_value, read_columns

LINE = "line"
"""Name of the index of a table whose rows are numbered as the lines of their file are, from 1."""

REMARKS = "remarks"
"""Attribute of a table, in ``attrs``: what its reader should know, a phrase each."""

UNITS = "units"
"""Attribute of a table, in ``attrs``: units of its columns by their names, from a line below the names."""

_SAMPLE_LINES = 200
_SEPARATORS = (",", ";", "\t", "|")
_SPACES = r"\s+"
_UNIT_LINES = 2


@dataclass(frozen=True)
class _Head:
    """What stands before the rows of a file.

    Attributes:
        separator: Character between values, or a pattern of white space.
        names: Names of the columns.
        lines: Lines before the first row.
        records: Records before it, one for each line but for quoted names that span lines.
        units: Units of the columns; empty without a line of them.
        remarks: What of them is left out, a phrase each.
    """

    separator: str
    names: tuple[str, ...]
    lines: int
    records: int
    units: tuple[str, ...]
    remarks: tuple[str, ...]


def read_text(file: Path, separator: str | None, decimal: Decimal | None) -> pd.DataFrame:
    """Read a table from a text file.

    Lines that start with ``#`` are comments. A line of words below the names, over columns of numbers, holds units.

    Args:
        file: The file, which may be compressed by gzip.
        separator: Character between values; found from the first lines if None.
        decimal: Decimal sign; found from the numbers if None.

    Returns:
        The table. Its index is called ``LINE``, its attribute ``REMARKS`` holds what was left out or is in doubt, its
        attribute ``UNITS`` the units of columns.

    Raises:
        UserError: If it has no names of columns, two of one name, or numbers that can be read in two ways.
    """
    try:
        with _open(file) as stream:
            head = _read_head(list(itertools.islice(stream, _SAMPLE_LINES)), separator)
        lines, comments = _find_rows(file, head)
        frame = _read_rows(file, head, comments, decimal)
        frame.index = pd.Index(lines, name=LINE)
    except UnicodeDecodeError as error:
        raise UserError(f"it is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return frame


def _open(file: Path) -> TextIO:
    opened: Any = gzip.open if file.suffix.lower() == ".gz" else Path.open
    return opened(file, "rt", encoding="utf-8-sig", newline="")


def _read_rows(file: Path, head: _Head, comments: Sequence[int], decimal: Decimal | None) -> pd.DataFrame:
    options: dict[str, Any] = {
        "sep": head.separator,
        "header": None,
        "names": head.names,
        "index_col": False,
        "skiprows": [*range(head.records), *comments],
        "skipinitialspace": True,
        "encoding": "utf-8-sig",
        "low_memory": False,
    }

    def read(**more: Any) -> pd.DataFrame:
        with warnings.catch_warnings():
            # Otherwise rows with more values than there are names lose some of them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(file, **options, **more)

    frame, remarks = read_columns(read, decimal)
    if head.names[-1] == "" and len(head.names) > 1 and bool(frame.iloc[:, -1].isna().all()):
        frame = frame.iloc[:, :-1]  # every line ends with a separator
    for place, name in enumerate(frame.columns):
        if name == "":
            raise UserError(f"its first line has no name for column {place}; name it, or save without row numbers")
    number = len(comments)
    below = (f"{number} comment line{' is' if number == 1 else 's are'} left out",) if comments else ()
    frame.attrs[UNITS] = {name: unit for name, unit in zip(head.names, head.units, strict=False) if unit}
    frame.attrs[REMARKS] = (*head.remarks, *below, *remarks)
    return frame


def _read_head(lines: list[str], separator: str | None) -> _Head:
    """Find names and separator in the first lines of a file."""
    stated = re.fullmatch(r"sep=(.)\s*", lines[0]) if lines else None
    separator = stated[1] if stated and separator is None else separator
    first = next((i for i in range(bool(stated), len(lines)) if _is_content(lines[i])), None)
    if first is None:
        raise UserError("it holds no names of columns and no rows")
    shown = [line for line in lines[first:] if _is_content(line)]
    separator = _find_separator(shown) if separator is None else {"\\t": "\t", " ": _SPACES}.get(separator, separator)
    records = _split(lines[first:], separator)
    used, names = next(records)
    above = next(_split([lines[first - 1].lstrip("# ")], separator))[1] if first and lines[first - 1][:1] == "#" else []
    if any(map(is_number, names)) and len(above) == len(names) and not any(map(is_number, above)):
        names, used = above, 0  # names behind a #, as NumPy writes them
    _check_names(names)
    before, units, remarks = first + used, [], []
    rows = [(first + used + end, row) for end, row in _split(lines[before:], separator) if row and row[0][:1] != "#"]
    for _ in range(_count_units([row for _, row in rows])):
        before, units = rows.pop(0)
        remarks.append(f"line {before} ({', '.join(units)}) is taken for units")
    records = sum(1 for _ in _split(lines[:before], separator))
    return _Head(separator, tuple(names), before, records, tuple(units), tuple(remarks))


def _check_names(names: Sequence[str]) -> None:
    doubled = [name for place, name in enumerate(names) if name in names[:place]]
    if all(map(is_number, names)) and (doubled or not all(map(str.isdigit, names))):
        raise UserError(f"its first line must name the columns, got {', '.join(names)}")
    if doubled:
        places = ", ".join(str(place) for place, name in enumerate(names) if name == doubled[0])
        what = f"two columns named {doubled[0]!r}" if doubled[0] else "columns without a name"
        raise UserError(f"it has {what}, those at the places {places}; rename one")


def _find_separator(lines: Sequence[str]) -> str:
    """The separator that divides the first lines into the most values, the same number in each."""
    counts = {}
    for separator in (*_SEPARATORS, _SPACES):
        widths = [len(row) for _, row in _split(lines, separator) if row]
        counts[separator] = (len(set(widths)) == 1 and widths[0] > 1, widths[0] if separator != _SPACES else 1)
    return max(counts, key=lambda separator: counts[separator])


def _count_units(rows: Sequence[Sequence[str]]) -> int:
    """How many of the first rows hold words, over a column of numbers alone."""
    for count in range(1, _UNIT_LINES + 1):
        words, rest = rows[:count], rows[count:]
        if any(is_number(value) for row in words for value in row):
            return 0
        for over, column in zip(zip(*words, strict=False), zip(*rest, strict=False), strict=False):
            numbers = [is_number(value) for value in column if is_value(value)]
            if numbers and all(numbers) and any(map(is_value, over)):
                return count
    return 0


def _split(lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Values of each record and the number of lines up to its end; quoted values may span lines."""
    if separator == _SPACES:
        yield from ((number, line.split()) for number, line in enumerate(lines, 1))
        return
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for row in reader:
        yield reader.line_num, [value.strip() for value in row]


def _is_content(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _find_rows(file: Path, head: _Head) -> tuple[np.ndarray, list[int]]:
    """Numbers of the lines at which rows begin, from 1, and places of comments among all records, from 0."""
    held, comments, quoted = [], [], False
    with _open(file) as stream:
        for place, line in enumerate(itertools.islice(stream, head.lines, None)):
            quoted = quoted or line.count('"') % 2 == 1
            if line.startswith("#"):
                comments.append(head.records + place)
            elif line.strip():
                held.append(head.lines + place + 1)
    if quoted:
        held, comments = _find_records(file, head)
    return np.array(held, dtype=np.int64), comments


def _find_records(file: Path, head: _Head) -> tuple[list[int], list[int]]:
    """As ``_find_rows``, of a file whose quoted values may span lines."""
    held, comments, last = [], [], 0
    with _open(file) as stream:
        rest: Any = itertools.islice(stream, head.lines, None)
        for place, (end, row) in enumerate(_split(rest, head.separator)):
            if row and row[0][:1] == "#":
                comments.append(head.records + place)
            elif row:
                held.append(head.lines + last + 1)
            last = end
    return held, comments
