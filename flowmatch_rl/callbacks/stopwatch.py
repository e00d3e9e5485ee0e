"""A stopwatch that continues when a run is resumed."""

import time


class Stopwatch:
    """Seconds of wall time between its starts and stops, over all parts of a resumed run."""

    def __init__(self) -> None:
        self._before: float | None = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds so far; None where those of an earlier part are not known."""
        if self._before is None:
            return None
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def start(self) -> None:
        """Start, or go on if running."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop, if running."""
        self._before, self._started = self.seconds, None

    def go_on_from(self, seconds: float | None) -> None:
        """Stop, and count from the time of the earlier parts.

        Args:
            seconds: That time; None if it is not known, and the sum of all parts then neither.
        """
        self._before, self._started = seconds, None
