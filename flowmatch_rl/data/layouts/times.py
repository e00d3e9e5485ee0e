"""Times of the rows of a log: how they are read, and where they say that an episode ends."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.tables.columns import read_numbers, row_name

SPACING_TOLERANCE = 0.5
"""How far the spacing of two rows may be from that of the log, as a fraction of it."""


@dataclass(frozen=True)
class TimeCuts:
    """Where times say that an episode ends.

    Attributes:
        interval: Spacing of the rows, in the unit of the times; None if no row follows another one.
        gaps: Rows after which the spacing is another one, shape (G,).
        backward: Rows after which time goes back, shape (R,).
        stalled: Rows after which time stays, shape (Z,).
    """

    interval: float | None
    gaps: np.ndarray
    backward: np.ndarray
    stalled: np.ndarray


def find_cuts(times: np.ndarray, last: np.ndarray, interval: float | None = None) -> TimeCuts:
    """Find where the times of rows of one episode are not evenly spaced.

    Args:
        times: Times, shape (N,).
        last: Whether a row is known to be the last of its episode, boolean, shape (N,); true in the last row.
        interval: Spacing of the rows; by default the median of these.
    """
    rows = np.flatnonzero(~last)
    spacing = times[rows + 1] - times[rows]
    ahead = spacing > 0.0
    if interval is None and ahead.any():
        interval = float(np.median(spacing[ahead]))
    even = np.zeros(len(rows), bool) if interval is None else _is_even(spacing, interval)
    return TimeCuts(interval, rows[ahead & ~even], rows[spacing < 0.0], rows[spacing == 0.0])


def _is_even(spacing: np.ndarray, interval: float) -> np.ndarray:
    return np.abs(spacing - interval) <= SPACING_TOLERANCE * interval


def read_times(frame: pd.DataFrame, name: str, table: str) -> np.ndarray:
    """A column of times: numbers in their unit; dates with times of day, and durations, in seconds.

    Args:
        frame: The table.
        name: The column.
        table: Phrase that names the table.

    Returns:
        Times, float64, shape (N,).

    Raises:
        UserError: If a row holds neither; the message names it.
    """
    column = pd.Series(frame[name])
    if pd.api.types.is_timedelta64_dtype(column):
        moments = column
    elif pd.api.types.is_datetime64_any_dtype(column) or not _holds_numbers(column):
        moments = pd.Series(pd.to_datetime(column, errors="coerce", format="ISO8601", utc=True))
    else:
        return read_numbers(frame, [name], table, text_hint="")[:, 0]
    missing = np.flatnonzero(moments.isna())
    if len(missing):
        row = int(missing[0])
        raise UserError(
            f"column {name!r} of {table} holds {column.iloc[row]!r} in {row_name(frame, row)}, wanted numbers or times "
            "such as 2026-01-31T12:00:00.02"
        )
    return ((moments - moments.iloc[0]) / pd.Timedelta(seconds=1)).to_numpy(np.float64)


def _holds_numbers(column: pd.Series) -> bool:
    return bool(pd.Series(pd.to_numeric(column.astype(object), errors="coerce")).notna().any())


def refuse_disorder(frame: pd.DataFrame, name: str, episode: str | None, cuts: TimeCuts, table: str) -> None:
    """Refuse rows of an episode that are not in the order of time; without a column of episodes another may begin.

    Args:
        frame: The table.
        name: Column of times.
        episode: Column of episodes, or None.
        cuts: What was found in the times.
        table: Phrase that names the table.

    Raises:
        UserError: Naming the first row whose time does not come after that of the row before.
    """
    wrong = np.sort(cuts.stalled if episode is None else np.append(cuts.stalled, cuts.backward))
    if len(wrong):
        row = int(wrong[0])
        before, after = frame[name].iloc[row], frame[name].iloc[row + 1]
        within = "" if episode is None else f" of episode {frame[episode].iloc[row]}"
        raise UserError(
            f"column {name!r} of {table} goes from {before} to {after} in {row_name(frame, row + 1)}{within}, wanted "
            "ascending times"
        )
