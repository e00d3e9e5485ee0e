"""Errors that a user can act on, and checks of arguments in one wording."""

import math
from collections.abc import Collection, Sequence


class UserError(ValueError):
    """A wrong argument, file or checkpoint; the command line shows it in three lines at most, with exit status 2."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a user named and that is not there."""


class RunError(Exception):
    """A run that cannot continue, for a reason its user can act on; the command line shows it, with exit status 1."""


def check_range(interval: str, /, **values: float | None) -> None:
    """Raise unless numbers lie in an interval.

    Args:
        interval: The interval, such as ``[0, 1)`` or ``(0, inf)``.
        **values: Numbers by the name to use in the error; None stands for an option that is not set, and passes.

    Raises:
        UserError: If a number lies outside, or is not a number.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    for name, value in values.items():
        if value is None:
            continue
        above = value > low if interval[0] == "(" else value >= low
        below = value < high if interval[-1] == ")" else value <= high
        if not (above and below):
            wanted = "be finite" if value == high == math.inf else _words(interval, low, high)
            raise UserError(f"{name} must {wanted}, got {value}")


def check_word(words: Collection[str], /, **values: str) -> None:
    """Raise unless words are among the known ones.

    Args:
        words: Known words.
        **values: Words by the name to use in the error.

    Raises:
        UserError: If a word is unknown.
    """
    for name, value in values.items():
        if value not in words:
            raise UserError(f"{name} must be one of {', '.join(words)}, got {value!r}")


def first_names(names: Sequence[object], most: int = 6) -> str:
    """The first of some names, for a message, and how many more there are.

    Args:
        names: Names, or what stands for them.
        most: Names to show, at least 1.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def _words(interval: str, low: float, high: float) -> str:
    if high != math.inf:
        return f"lie in {interval}"
    if low == 0.0 and interval[0] == "(":
        return "be positive"
    return f"be {'at least' if interval[0] == '[' else 'above'} {low:g}"
