"""A profiler that measures nothing."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.profilers import PassThroughProfiler


class QuietProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's default does, which makes a generator for each hook of each callback.

    That is more than a hundred per update: for small networks a noticeable part of it.
    """

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A context that does nothing."""
        return self._nothing
