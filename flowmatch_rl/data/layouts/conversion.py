"""Copies transitions from any layout into the canonical data set."""

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict

from flowmatch_rl.batches import DONE
from flowmatch_rl.data.layouts.base import Layout
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.data.transitions.writer import TransitionWriter, progress_bar

PIECE_ROWS = 100_000
"""Rows that are written at a time: each writing waits for the disk."""


def convert_layout(layout: Layout, path: str, progress: bool = True) -> TransitionStore:
    """Copy transitions into a data set.

    No more than a file of the layout or about ``PIECE_ROWS`` rows are in memory at a time. A conversion that was
    interrupted resumes when it is called again with the same arguments.

    Args:
        layout: Where they are, and how they are laid out.
        path: Folder of the data set; see ``TransitionWriter``.
        progress: Whether to show a bar.

    Returns:
        The data set.

    Raises:
        MissingFileError: If the layout's files are not there.
        UserError: If they do not have the layout, or the folder is occupied or holds another data set.
    """
    info = layout.describe()
    with TransitionWriter(path, info) as writer, progress_bar(writer, type(layout).__name__, progress) as bar:
        for piece in pieces(skip_rows(layout.blocks(), writer.rows_written), PIECE_ROWS, info.ordered):
            writer.append(piece)
            bar.update(len(piece))
        return writer.finish()


def skip_rows(blocks: Iterator[TensorDict], number: int) -> Iterator[TensorDict]:
    """Blocks without their first ``number`` rows."""
    for block in blocks:
        dropped = min(number, len(block))
        number -= dropped
        if dropped < len(block):
            yield block[dropped:]


def pieces(blocks: Iterator[TensorDict], size: int, whole: bool) -> Iterator[TensorDict]:
    """Blocks of about the same size.

    Args:
        blocks: Blocks of any sizes.
        size: Rows of a piece at least, but for the last.
        whole: Whether to end pieces where a trajectory ends, if one ends in them. What is written then does not
            depend on interruptions.

    Yields:
        The same rows in the same order.
    """
    held: list[TensorDict] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) < size:
            continue
        piece = _joined(held)
        ended = piece.get(DONE).flatten().nonzero()
        cut = int(ended[-1]) + 1 if whole and len(ended) else len(piece)
        first, rest = piece.split([cut, len(piece) - cut])
        yield first
        held = [rest] if len(rest) else []
    if held:
        yield _joined(held)


def _joined(blocks: list[TensorDict]) -> TensorDict:
    rows: Any = torch.cat(blocks)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return rows
