"""Missing values of tables: refused, left out with their rows, or filled."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError, first_names
from flowmatch_rl.data.tables.columns import row_name

Missing = Literal["refuse", "drop", "fill"]

NO_CLASS = "missing"
"""Class of rows whose class is missing, if they are filled."""


def drop_gaps(
    frame: pd.DataFrame, names: Sequence[str], missing: Missing, table: str
) -> tuple[pd.DataFrame, list[str]]:
    """Leave out rows that lack a value, or refuse them.

    Args:
        frame: The table.
        names: Columns that are used; values that others lack do not matter.
        missing: ``drop`` to leave rows out, ``refuse`` to raise, ``fill`` to keep them.
        table: Phrase that names the table.

    Returns:
        The table, and a phrase on what was left out, if anything was.

    Raises:
        UserError: If values are missing that are to be refused; or all rows lack some.
    """
    gaps = frame[list(names)].isna()
    rows = np.flatnonzero(gaps.any(axis=1))
    if missing == "fill" or len(rows) == 0:
        return frame, []
    some = f"{len(rows)} row{'s' * (len(rows) > 1)} of {len(frame)}"
    first = f"{'' if len(rows) == 1 else 'the first is '}{row_name(frame, int(rows[0]))}"
    if missing == "refuse":
        columns = [repr(name) for name in names if bool(gaps[name].any())]
        where = f"column{'s' * (len(columns) > 1)} {first_names(columns)}"
        raise UserError(
            f"{table} lacks values in {some} ({first}), of {where}; set missing to 'drop' to leave such rows out, or "
            "to 'fill'"
        )
    if len(rows) == len(frame):
        raise UserError(
            f"every row of {table} lacks a value; choose `columns` that are filled, or set missing to 'fill'"
        )
    return frame.drop(index=frame.index[rows]), [f"{some} with missing values ({first})"]


def fill_gaps(
    frame: pd.DataFrame, numbers: Sequence[str], classes: Sequence[str], training_rows: np.ndarray
) -> tuple[pd.DataFrame, list[str]]:
    """Fill missing numbers with the median of their column, and missing classes with a class of their own.

    Args:
        frame: The table.
        numbers: Columns of numbers.
        classes: Columns of classes.
        training_rows: Rows whose median is taken.

    Returns:
        The table, and a phrase on what was filled, if anything was.
    """
    remarks, columns = [], {}
    for name in [*numbers, *classes]:
        column = pd.Series(frame[name])
        number = int(column.isna().sum())
        if number == 0:
            continue
        filled = column.astype(object) if name in classes else pd.Series(pd.to_numeric(column))
        value = NO_CLASS if name in classes else float(filled.iloc[training_rows].median())
        columns[name] = filled.where(column.notna(), value)
        remarks.append(f"{number} of {name} by {value if name in classes else format(value, '.4g')}")
    if not remarks:
        return frame, []
    return frame.assign(**columns), [f"missing values are filled: {first_names(remarks)}"]
