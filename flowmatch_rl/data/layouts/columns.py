"""What layouts of tables have in common: columns with names and units."""

import abc
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.layouts.base import Layout
from flowmatch_rl.data.tables.columns import read_numbers, row_name
from flowmatch_rl.data.tables.numbers import Decimal
from flowmatch_rl.data.tables.reading import TableFile
from flowmatch_rl.data.tables.text import UNITS
from flowmatch_rl.data.transitions.store import StoreInfo

_TRUTHS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class ColumnLayout(Layout, abc.ABC):
    """A layout in tables, in any file that ``TableFile`` reads.

    Args:
        observations: Columns of the observation, which give its entries their names.
        actions: Columns of the action.
        reward: Column of the reward; without one the data set has no rewards.
        terminated: Column that marks terminations; without one there are none.
        units: Units of columns by their names, as text such as ``rad``.
        separator: Character between the values of a text file; found from its first lines if None.
        decimal: Decimal sign of a text file, ``.`` or ``,``; found from its numbers if None.
    """

    observations: list[str] = field(kw_only=True)
    actions: list[str] = field(kw_only=True)
    reward: str | None = field(default=None, kw_only=True)
    terminated: str | None = field(default=None, kw_only=True)
    units: dict[str, str] = field(default_factory=dict, kw_only=True)
    separator: str | None = field(default=None, kw_only=True)
    decimal: Decimal | None = field(default=None, kw_only=True)

    def load(self, file: Path | str) -> pd.DataFrame:
        """Read a file as a table."""
        return TableFile(str(file), self.separator, self.decimal).load()

    def named(
        self, info: StoreInfo, frame: pd.DataFrame, observations: Sequence[str], actions: Sequence[str]
    ) -> StoreInfo:
        """A description with the names and units of the entries of observations and actions.

        Args:
            info: The description.
            frame: A table of the layout, for the units that its file gives.
            observations: Columns of the observation.
            actions: Columns of the action.

        Raises:
            UserError: If ``units`` names another column.
        """
        own = {column: unit for name, unit in self.units.items() for column in expanded([name], frame)}
        held = {name: unit for name, unit in frame.attrs.get(UNITS, {}).items() if name in (*observations, *actions)}
        return replace(info, action_columns=tuple(actions), units=held | own)

    def numbers(self, part: pd.DataFrame, names: Sequence[str], table: str) -> np.ndarray:
        """Columns of numbers that are finite in single precision, float64, shape (B, len(names)).

        Args:
            part: Rows of a table.
            names: The columns.
            table: Phrase that names the table.

        Raises:
            UserError: If one holds something else; the message names it and the row.
        """
        values = read_numbers(part, names, table, text_hint="")
        large = np.argwhere(np.abs(values) > np.finfo(np.float32).max)
        if len(large):
            row, place = map(int, large[0])
            held = f"{values[row, place]:g} in {row_name(part, row)}"
            raise UserError(f"column {names[place]!r} of {table} holds {held}, too large a number")
        return values

    def flags(self, part: pd.DataFrame, name: str | None, table: str) -> np.ndarray:
        """A column of zeros and ones, or of ``true`` and ``false``, boolean, shape (B,).

        Args:
            part: Rows of a table.
            name: The column; all are False without one.
            table: Phrase that names the table.

        Raises:
            UserError: If it holds something else; the message names it and the row.
        """
        if name is None:
            return np.zeros(len(part), bool)
        column = pd.Series(part[name])
        if not pd.api.types.is_numeric_dtype(column):
            column = column.map(lambda value: _TRUTHS.get(str(value).lower(), value))
        values = self.numbers(column.to_frame(name), [name], table)[:, 0]
        wrong = np.flatnonzero((values != 0.0) & (values != 1.0))
        if len(wrong):
            held = f"{values[wrong[0]]:g} in {row_name(part, int(wrong[0]))}"
            raise UserError(f"column {name!r} of {table} holds {held}, wanted 0 or 1")
        return values == 1.0


def expanded(names: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Names of columns, in place of the name of a matrix those of its columns: ``q`` is ``q[0]``, ``q[1]`` and so on.

    Args:
        names: Names of columns or matrices.
        frame: The table.
    """
    columns = []
    for name in names:
        size = next(place for place in itertools.count() if f"{name}[{place}]" not in frame.columns)
        matrix = [] if name in frame.columns else [f"{name}[{place}]" for place in range(size)]
        columns += matrix or [name]
    return columns
