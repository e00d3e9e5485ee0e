"""Several updates in one step of the trainer, so that what it does around each step is shared by them."""

from collections.abc import Callable, Iterator
from typing import Any

UPDATES_PER_ROUND = 8
"""Updates of one step of the trainer, whose forty hooks take up to 8 % of a small network's update."""


class Round:
    """Batches of consecutive updates, each of which is made when it is taken, after the updates of those before it.

    Args:
        number: Batches.
        make: Returns a batch, given its number in the round.
    """

    def __init__(self, number: int, make: Callable[[int], Any]) -> None:
        self._number, self._make = number, make

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Any]:
        return map(self._make, range(self._number))
