"""Where the episodes of a log with one row per step end, and which transitions its rows make."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.tables.columns import row_name

Outcomes = Literal["action", "arrival"]
"""The row that holds what came of an action, its reward and flags: that of the action, or that of where it led."""


@dataclass(frozen=True)
class Steps:
    """The transitions of a log, each from a row to the next one.

    Attributes:
        start: Rows whose action led to the next row, ascending, shape (B,).
        outcome: Rows that hold the rewards, shape (B,).
        terminated: Whether the next row holds a terminal state, boolean, shape (B,).
        truncated: Whether the episode ends there for another reason, boolean, shape (B,).
        last: Whether a row is the last of its episode, boolean, shape (N,).
        num_single: Episodes of one row, which make no transition.
        num_lost: Terminations whose terminal state is not in the log.
    """

    start: np.ndarray
    outcome: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    last: np.ndarray
    num_single: int
    num_lost: int


def find_steps(
    terminated: np.ndarray, truncated: np.ndarray, cut: np.ndarray, closing: np.ndarray, outcomes: Outcomes
) -> Steps:
    """Find the transitions of a log.

    A flag in the row that an action led to ends the episode with that row. A flag in the row of the action ends it with
    the row after, if that may close an episode, and otherwise with the row of the flag, as the row after is the first
    of another episode: the state that the flag is about is not in the log.

    Args:
        terminated: Flags of terminations, boolean, shape (N,).
        truncated: Flags of other ends, boolean, shape (N,).
        cut: Whether the row after is known to be of another episode, boolean, shape (N,); true in the last row.
        closing: Whether a row may hold the state that a flagged row before it led to, boolean, shape (N,).
        outcomes: Where the flags and rewards are.
    """
    flagged, last = terminated | truncated, cut.copy()
    closed = np.zeros(len(cut), bool)  # whether the row before is flagged and led here
    if outcomes == "arrival":
        last |= flagged
    else:
        closed[1:] = flagged[:-1] & ~cut[:-1] & closing[1:]
        last |= closed | (flagged & ~np.append(closed[1:], False))
    start = np.flatnonzero(~last)
    outcome = start + (outcomes == "arrival")
    ended = terminated[outcome]
    first = np.append(True, last[:-1])
    lost = terminated & (first if outcomes == "arrival" else last & ~closed)
    return Steps(
        start=start,
        outcome=outcome,
        terminated=ended,
        truncated=last[start + 1] & ~ended,
        last=last,
        num_single=int((first & last).sum()),
        num_lost=int(lost.sum()),
    )


def episode_ends(frame: pd.DataFrame, name: str | None, table: str) -> np.ndarray:
    """Whether rows are the last of their episodes by a column, boolean, shape (N,); the last row of the file always is.

    Args:
        frame: The table.
        name: Column of the episodes, or None.
        table: Phrase that names the table.

    Raises:
        UserError: If a row lacks its episode, or the rows of one do not follow each other.
    """
    cut = np.arange(len(frame)) == len(frame) - 1
    if name is None:
        return cut
    numbers, names = pd.factorize(frame[name])
    if (numbers < 0).any():
        raise UserError(f"column {name!r} of {table} lacks a value in {row_name(frame, int((numbers < 0).argmax()))}")
    cut[:-1] = numbers[1:] != numbers[:-1]
    begins = np.flatnonzero(np.append(True, cut[:-1]))
    again = np.flatnonzero(pd.Series(numbers[begins]).duplicated())
    if len(again):
        row = int(begins[again[0]])
        raise UserError(
            f"episode {names[numbers[row]]} of {table} begins again in {row_name(frame, row)}; the rows of an episode "
            "must follow each other"
        )
    return cut


def refuse_resumed(
    frame: pd.DataFrame, name: str, flagged: np.ndarray, cut: np.ndarray, outcomes: Outcomes, table: str
) -> None:
    """Refuse an episode that goes on after a flag.

    Args:
        frame: The table.
        name: Column of the episodes.
        flagged: Flags of ends, boolean, shape (N,).
        cut: Whether a row is the last of its episode, boolean, shape (N,).
        outcomes: Where the flags are.
        table: Phrase that names the table.

    Raises:
        UserError: Naming the first flag before the end of its episode.
    """
    rows, ends = np.flatnonzero(flagged), np.flatnonzero(cut)
    left = ends[np.searchsorted(ends, rows)] - rows
    wrong = np.flatnonzero(left > (outcomes == "action"))
    if len(wrong):
        row, more = int(rows[wrong[0]]), int(left[wrong[0]])
        hint = "; if flags are in the rows of their actions, set outcomes to 'action'" if more == 1 else ""
        raise UserError(
            f"{row_name(frame, row)} of {table} is flagged as the end of episode {frame[name].iloc[row]}, of which "
            f"{more} more row{' follows' if more == 1 else 's follow'}{hint}"
        )
