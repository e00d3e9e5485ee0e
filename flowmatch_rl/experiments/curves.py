"""Tables of evaluations that runs keep in their folders."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import yaml

from flowmatch_rl.checks import UserError
from flowmatch_rl.files import CURVE, FIGURES

CURVE_PATH = f"{FIGURES}/{CURVE}"
"""Path of the table in a run's folder."""

STEPS = ("env_steps", "gradient_steps")
"""Columns that may hold the steps."""


def read_curve(folder: Path, column: str, others: Sequence[str] = ()) -> tuple[str, pd.DataFrame] | None:
    """A run's evaluations that measured something.

    Args:
        folder: Folder of the run.
        column: What they must have measured.
        others: Further columns; NaN where the table has none of that name.

    Returns:
        What the steps are, ``env_steps`` or ``gradient_steps``, and a table of them, which ascend, and of the columns,
        at least one row; None if there is none yet, or never, as where a generative model has no returns.

    Raises:
        UserError: If the table is damaged.
    """
    path = folder / CURVE_PATH
    if not path.is_file():
        return None
    with reading(path):
        table = pd.read_csv(path, usecols=lambda name: name in (*STEPS, column, *others), dtype=float)
        counts = next((name for name in STEPS if name in table), None)
        if counts is None:
            return None
        table = table.reindex(columns=[counts, column, *others]).dropna(subset=column)
        if table.empty:
            return None
        if not (table[counts].diff().iloc[1:] > 0.0).all():
            raise ValueError(f"{counts} do not ascend")
        return counts, table


def measured_columns(folder: Path) -> list[str]:
    """Names of what a run's evaluations may measure; none before the first evaluation.

    Args:
        folder: Folder of the run.

    Raises:
        UserError: If the table is damaged.
    """
    path = folder / CURVE_PATH
    if not path.is_file():
        return []
    with reading(path):
        return [str(name) for name in pd.read_csv(path, nrows=0).columns if name not in (*STEPS, "seconds")]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read, in a ``with`` block.

    Args:
        path: The file.

    Raises:
        UserError: In place of what is wrong with it.
    """
    try:
        yield
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
