"""Errors that a user can act on, and checks of arguments in one wording."""

from typing import TypeVar

Number = TypeVar("Number", int, float)


class UserError(ValueError):
    """A wrong argument, file or checkpoint; the command line shows it in three lines at most, with exit status 2."""


class RunError(Exception):
    """A run that cannot continue, for a reason its user can act on; the command line shows it, with exit status 1."""
