"""Numbers as people write them: decimal commas, thousands separators, percent signs, and words for missing values."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError, first_names

Decimal = Literal[".", ","]

_MORE_MISSING = ("-", "?")
_MISSING = {"", "#n/a", "#na", "<na>", "n/a", "na", "null", "nan", "-nan", "none", *_MORE_MISSING}
_SPACES = "'\u2019 \u00a0\u202f"
_GROUPS: Mapping[Decimal, str] = {".": f",{_SPACES}", ",": f".{_SPACES}"}
"""Characters between thousands, by the decimal sign."""

_Ways = dict[str, np.ndarray]
"""Values of a column by the decimal sign they are read with; of the key "" where it makes no difference."""


def _pattern(sign: Decimal) -> re.Pattern[str]:
    whole = rf"(?:[1-9]\d{{0,2}}(?:[{_GROUPS[sign]}]\d{{3}})+|\d+)"
    return re.compile(rf"[+\-\u2212]?(?:{whole}(?:[{sign}]\d*)?|[{sign}]\d+)(?:[eE][+-]?\d+)?")


_PATTERNS: Mapping[Decimal, re.Pattern[str]] = {sign: _pattern(sign) for sign in _GROUPS}


def is_value(text: str) -> bool:
    """Whether a text is not one that stands for a missing number."""
    return text.strip().lower() not in _MISSING


def is_number(text: str) -> bool:
    """Whether a text is a number, with either decimal sign, perhaps in percent."""
    return is_value(text) and any(_number(text.strip(), sign) is not None for sign in _PATTERNS)


def read_columns(read: Callable[..., pd.DataFrame], decimal: Decimal | None) -> tuple[pd.DataFrame, list[str]]:
    """Read a text file and decide which of its columns hold numbers.

    A column holds numbers if all its values do. Words such as ``NA`` are missing values then; in a column of text they
    are words, and only nothing at all is missing.

    Args:
        read: Reads the file with options of ``pandas.read_csv``.
        decimal: Decimal sign; found from the numbers if None.

    Returns:
        The table, and remarks on how numbers were read, a phrase each.

    Raises:
        UserError: If numbers can be read in two ways.
    """
    frame = read(decimal=decimal or ".", na_values=list(_MORE_MISSING))
    odd = [name for name in frame.columns if not _is_plain(pd.Series(frame[name]))]
    if not odd:
        return frame, []
    written = _written(read, odd)
    ways = {name: _ways(column, decimal) for name, column in written.items()}
    floats = [name for name in frame.columns if pd.api.types.is_float_dtype(frame[name]) and name not in odd]
    if decimal is None and floats and any("," in found for found in ways.values()):
        # What was read with a decimal point may be thousands.
        written |= _written(read, floats)
        ways |= {name: _ways(written[name], decimal) for name in floats}
    sign = decimal or _decimal_sign(ways)
    remarks: dict[str, list[str]] = {}
    for name, found in ways.items():
        if len(found) == 2 and sign is None:
            first = next(value for value in written[name] if "," in value or "." in value)
            raise UserError(
                f"column {name!r} holds {first!r}, which can be read in two ways; set decimal to '.' or ',', or write "
                "thousands without a separator"
            )
        values = found.get("", found.get(sign or ""))
        frame[name] = [value or None for value in written[name]] if values is None else values
        for remark in [] if values is None or name not in odd else _remarks(written[name], sign or "."):
            remarks.setdefault(remark, []).append(name)
    return frame, [f"{remark} in {first_names(names)}" for remark, names in remarks.items()]


def _is_plain(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not bool(column.isna().all())


def _written(read: Callable[..., pd.DataFrame], names: list[str]) -> dict[str, list[str]]:
    """Columns as they are written, without the white space around values."""
    frame = read(usecols=names, dtype=str, keep_default_na=False)
    return {name: [value.strip() for value in frame[name].fillna("")] for name in names}


def _ways(written: list[str], decimal: Decimal | None) -> _Ways:
    """Read a column of text as numbers, with each decimal sign that all its values may have; none for text."""
    ways: _Ways = {}
    for sign in _PATTERNS if decimal is None else (decimal,):
        values = [_number(value, sign) if is_value(value) else math.nan for value in written]
        if None not in values and any(map(is_value, written)):
            ways[sign] = np.array(values, dtype=np.float64)
    if len(ways) == 2 and np.array_equal(ways["."], ways[","], equal_nan=True):
        return {"": ways["."]}
    return ways


def _number(text: str, sign: Decimal) -> float | None:
    """A number as it is written with a decimal sign, or None; one in percent keeps that unit."""
    plain = text.removesuffix("%").rstrip()
    if _PATTERNS[sign].fullmatch(plain):
        digits = "".join(character for character in plain if character not in _GROUPS[sign])
        return float(digits.replace(sign, ".").replace("\u2212", "-"))
    return math.inf * (-1) ** plain.startswith("-") if plain.lower().lstrip("+-") in ("inf", "infinity") else None


def _decimal_sign(ways: Mapping[str, _Ways]) -> Decimal | None:
    """The decimal sign of a file, from the columns in which it can be only one."""
    first: dict[str, str] = {}
    for name, found in ways.items():
        if len(found) == 1:
            first.setdefault(next(iter(found)), name)
    if "." in first and "," in first:
        raise UserError(
            f"column {first[',']!r} has a decimal comma and column {first['.']!r} a decimal point; set decimal to that "
            "of the numbers, the other column is text then"
        )
    return next((sign for sign in _PATTERNS if sign in first), None)


def _remarks(written: list[str], sign: Decimal) -> list[str]:
    """How the numbers of a column were read, where that may surprise."""
    values = [value for value in written if is_value(value)]
    grouped = any(re.search(rf"\d[{_GROUPS[sign]}]\d", value) for value in values)
    remarks = ["thousands separators"] * grouped
    remarks += ["decimal commas"] * (sign == "," and any("," in value for value in values))
    return remarks + ["numbers in percent"] * any(value.endswith("%") for value in values)
