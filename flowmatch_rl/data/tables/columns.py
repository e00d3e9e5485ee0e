"""Columns of tables: which there are, what they hold, and the units they are standardised by.

Messages name a row by its label in the frame's index, whose name says what it counts, such as ``line 7``, and a table
by a phrase such as ``the table 'wine'``.
"""

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, first_names
from flowmatch_rl.schema import TableSchema


def require_columns(frame: pd.DataFrame, names: Sequence[str], table: str) -> None:
    """Refuse a table that lacks a column or has no rows.

    Raises:
        UserError: Naming the first missing column, and the nearest name that there is.
    """
    for name in names:
        if name not in frame.columns:
            near = difflib.get_close_matches(name, map(str, frame.columns), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            held = ", ".join(map(str, frame.columns))
            raise UserError(f"{table} has no column {name!r}, only {held}{hint}")
    if len(frame) == 0:
        raise UserError(f"{table} has no rows")


def row_name(frame: pd.DataFrame | pd.Series, place: int) -> str:
    """What a row is called in messages, such as ``row 7``, or ``line 7`` of a text file.

    Args:
        frame: The table.
        place: Place of the row in it, from 0.
    """
    return f"{frame.index.name or 'row'} {frame.index[place]}"


def numeric_columns(frame: pd.DataFrame, table: str) -> tuple[list[str], dict[str, str]]:
    """The columns of numbers; digits stored as text are text.

    Args:
        frame: The table.
        table: Phrase that names it.

    Returns:
        Their names in order, and by name what each other column holds.

    Raises:
        UserError: If a column holds numbers in some rows and text in others.
    """
    names, others = [], {}
    for name in frame.columns:
        column = pd.Series(frame[name])
        held = column.dropna()
        numbers = np.flatnonzero(np.isfinite(_parse(column)))
        if len(held) == 0:
            others[name] = "no values"
        elif pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
            names.append(name)
        elif len(numbers):
            _refuse_text(column, table)
            if isinstance(column.iloc[numbers[0]], str):
                others[name] = f"text such as {held.iloc[0]!r}"
            else:
                names.append(name)
        else:
            others[name] = f"text such as {held.iloc[0]!r}" if isinstance(held.iloc[0], str) else str(column.dtype)
    return names, others


_TEXT_HINT = "; it may be named in `classes`, or left out of `columns`"


def read_numbers(frame: pd.DataFrame, names: Sequence[str], table: str, text_hint: str = _TEXT_HINT) -> np.ndarray:
    """Columns of numbers, float64, shape (B, len(names)).

    Args:
        frame: The table.
        names: The columns.
        table: Phrase that names the table.
        text_hint: What to do about a column of text, for the end of the message.

    Raises:
        UserError: If one of them holds text, or a value that is missing or not finite; the message names it and the
            first row.
    """
    values = np.empty((len(frame), len(names)))
    for place, name in enumerate(names):
        column = pd.Series(frame[name])
        _refuse_text(column, table, text_hint)
        values[:, place] = _parse(column)
        for what, bad in (("missing", np.isnan(values[:, place])), ("not finite", np.isinf(values[:, place]))):
            if bad.any():
                held = "a value that is" if bad.sum() == 1 else f"{bad.sum()} values that are"
                where = f"{'' if bad.sum() == 1 else 'the first '}in {row_name(frame, int(bad.argmax()))}"
                raise UserError(f"column {name!r} of {table} holds {held} {what}, {where}")
    return values


def _parse(column: pd.Series) -> np.ndarray:
    """Values as float64, NaN for those that are missing or not numbers."""
    if pd.api.types.is_complex_dtype(column):
        return np.full(len(column), np.nan)
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    return np.asarray(pd.to_numeric(column.astype(object), errors="coerce"), np.float64)


def _refuse_text(column: pd.Series, table: str, hint: str = _TEXT_HINT) -> None:
    """Refuse a column with a value that is not a number; missing values pass."""
    bad = np.flatnonzero(np.isnan(_parse(column)) & column.notna().to_numpy())
    if len(bad):
        value = column.iloc[bad[0]]
        raise UserError(
            f"column {column.name!r} of {table} holds {value!r} in {row_name(column, bad[0])}, which is not a number"
            f"{hint}"
        )


def read_classes(frame: pd.DataFrame, name: str, table: str) -> np.ndarray:
    """A column of classes as text, shape (B,); whole numbers that were read as floats lose their point.

    Raises:
        UserError: If a row has no class.
    """
    codes, values = pd.factorize(frame[name].astype(object))
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        first = row_name(frame, missing[0])
        raise UserError(f"column {name!r} of {table} lacks the class of {len(missing)} rows, the first of them {first}")
    return np.array([_class_name(value) for value in values], dtype=object)[codes]


def _class_name(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def describe_table(
    frame: pd.DataFrame,
    columns: Sequence[str],
    conditions: Sequence[str],
    classes: Sequence[str],
    integers: Sequence[str],
    training_rows: np.ndarray,
    standardise: bool,
    table: str,
) -> TableSchema:
    """Read the schema of a table.

    Args:
        frame: The table.
        columns: Its sample columns.
        conditions: Its continuous condition columns.
        classes: Its class columns; their classes are those of the whole table.
        integers: Those of the columns whose samples are integers.
        training_rows: Rows whose mean and standard deviation are taken.
        standardise: Whether to take them; otherwise the shift is 0 and the scale 1.
        table: Phrase that names the table.

    Raises:
        UserError: If a column cannot be read, is constant and was to be standardised, or is named in ``integers`` and
            holds others.
    """
    values = read_numbers(frame, integers, table)
    for name, column in zip(integers, values.T, strict=True):
        if name not in (*columns, *conditions):
            raise UserError(f"integers names {name!r}, which is not learned; the columns are {first_names(columns)}")
        broken = np.flatnonzero(column != np.rint(column))
        if len(broken):
            where = row_name(frame, int(broken[0]))
            raise UserError(
                f"column {name!r} of {table} is named in integers, but holds {column[broken[0]]:g} in {where}"
            )
    shift, scale = _units(frame, columns, training_rows, standardise, table)
    condition_shift, condition_scale = _units(frame, conditions, training_rows, standardise, table)
    return TableSchema(
        columns=tuple(columns),
        shift=shift,
        scale=scale,
        condition_columns=tuple(conditions),
        condition_shift=condition_shift,
        condition_scale=condition_scale,
        class_columns=tuple(classes),
        classes=tuple(tuple(sorted(set(read_classes(frame, name, table)))) for name in classes),
        integers=tuple(integers),
    )


def _units(
    frame: pd.DataFrame, names: Sequence[str], rows: np.ndarray, standardise: bool, table: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of columns."""
    values = read_numbers(frame, names, table)[rows]
    if not standardise:
        return (0.0,) * len(names), (1.0,) * len(names)
    for name, constant, value in zip(names, np.ptp(values, axis=0) == 0.0, values[0], strict=True):
        if constant:
            raise UserError(
                f"column {name!r} of {table} is {value:g} in all {len(rows)} training rows and has no scale; "
                "leave it out, or set standardise to false"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        shift, scale = values.mean(0), values.std(0)
    for name, unit, extent in zip(names, scale, np.ptp(values, axis=0), strict=True):
        if not 0.0 < unit < np.inf:
            raise UserError(
                f"column {name!r} of {table} extends over {extent:g}, which has no standard deviation in double "
                "precision; rescale it"
            )
    return tuple(shift.tolist()), tuple(scale.tolist())


def standardised_samples(frame: pd.DataFrame, schema: TableSchema, table: str) -> Tensor:
    """Samples in the units of a schema, float32, shape (B, D).

    Raises:
        UserError: If the table lacks a column, or one cannot be read.
    """
    require_columns(frame, schema.columns, table)
    sample = schema.standardise(torch.from_numpy(read_numbers(frame, schema.columns, table))).float()
    _check_single(sample, schema.columns, frame, table)
    return sample


def standardised_conditions(frame: pd.DataFrame, schema: TableSchema, table: str) -> Tensor | None:
    """Conditions in the units of a schema, float32, shape (B, C); None if it has none.

    Raises:
        UserError: If the table lacks a column, one cannot be read, or holds a class that the schema does not know.
    """
    if schema.condition_dim == 0:
        return None
    require_columns(frame, schema.condition_columns + schema.class_columns, table)
    numbers = read_numbers(frame, schema.condition_columns, table)
    values: dict[str, np.ndarray] = dict(zip(schema.condition_columns, numbers.T, strict=True))
    for name, classes in zip(schema.class_columns, schema.classes, strict=True):
        values[name] = read_classes(frame, name, table)
        unknown = np.flatnonzero(~np.isin(values[name], classes))
        if len(unknown):
            raise UserError(
                f"column {name!r} of {table} holds the class {values[name][unknown[0]]!r} in "
                f"{row_name(frame, unknown[0])}, which the model does not know; its classes are {', '.join(classes)}"
            )
    condition = schema.condition(values).float()
    _check_single(condition[:, : len(schema.condition_columns)], schema.condition_columns, frame, table)
    return condition


def _check_single(values: Tensor, names: Sequence[str], frame: pd.DataFrame, table: str) -> None:
    """Refuse standardised values that overflow single precision."""
    for name, column in zip(names, values.T, strict=True):
        bad = torch.nonzero(~torch.isfinite(column))
        if len(bad):
            place = int(bad[0])
            held = f"{frame[name].iloc[place]} in {row_name(frame, place)}"
            raise UserError(f"column {name!r} of {table} holds {held}, too large a number")
