"""Endless passes over the rows of a table, each in an order of its own."""

import torch
from torch import Tensor

from flowmatch_rl.seeds import process_seed

Batch = dict[str, Tensor]


class ShuffledRows:
    """Draws batches without replacement, pass after pass; a batch may span two passes.

    The order of a pass depends on the seed, the rank and the number of the pass alone, so that a place in the sequence
    is three numbers, the same for all ranks.

    Args:
        table: Tensors of the same number of rows.
        batch_size: Rows per batch, no more than there are.
        rank: Rank of this process; each has its own sequence.
        seed: Seed of the sequences.
        passes: Number of passes made.
        row: Rows taken of the present pass.
    """

    def __init__(
        self, table: Batch, batch_size: int, rank: int = 0, seed: int = 0, passes: int = 0, row: int = 0
    ) -> None:
        self.num_rows = len(next(iter(table.values())))
        self.seed, self.passes, self.row = seed, passes, row
        self._table = table
        self._batch_size = batch_size
        self._rank = rank
        self._shuffled = self._shuffle()

    def state_dict(self) -> dict[str, int]:
        """The place in the sequence, and the number of rows it is a place of."""
        return {"num_rows": self.num_rows, "seed": self.seed, "passes": self.passes, "row": self.row}

    def take(self) -> Batch:
        """The next batch, shape (B, ...) each; views of a copy that lasts one pass."""
        start, end = self.row, self.row + self._batch_size
        if end <= self.num_rows:
            self.row = end
            return {key: rows[start:end] for key, rows in self._shuffled.items()}
        before = self._shuffled
        self.passes += 1
        self.row = end - self.num_rows
        self._shuffled = self._shuffle()
        return {key: torch.cat([before[key][start:], rows[: self.row]]) for key, rows in self._shuffled.items()}

    def _shuffle(self) -> Batch:
        generator = torch.Generator().manual_seed(process_seed(self.seed, self._rank, self.passes))
        order = torch.randperm(self.num_rows, generator=generator)
        return {key: rows[order] for key, rows in self._table.items()}
