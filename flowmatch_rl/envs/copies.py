"""Copies of an environment in processes of their own."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv

from flowmatch_rl.checks import RunError
from flowmatch_rl.envs.watchdog import watched

_SHUTDOWN_S = 2.0
"""Seconds that a process has to close its environment before it is ended."""


class ParallelCopies(ParallelEnv):
    """Copies in processes of their own, whose errors reach the process that steps them.

    Args:
        num_envs: Number of copies.
        label: Name of the environment, for errors.
        make: Makes a copy. It is called with the folder to which the copy writes its error before its process ends,
            or with None in this process.
    """

    def __init__(self, num_envs: int, label: str, make: Callable[[Path | None], EnvBase]) -> None:
        reports = tempfile.TemporaryDirectory(prefix="flowmatch_rl_", ignore_cleanup_errors=True)
        super().__init__(num_envs, _Copy(make, Path(reports.name), os.getpid()), shutdown_timeout=_SHUTDOWN_S)
        self._label = label
        self._reports = reports

    def set_seed(self, seed: int | None = None, static_seed: bool = False) -> int | None:
        """Seed the copies, each by another seed, and return the next one."""
        with self._call("reset"):
            return super().set_seed(seed, static_seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        with self._call("reset"):
            return super()._reset(tensordict, **options)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        with self._call("step"):
            return super()._step(tensordict)

    def step_and_maybe_reset(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """Step the copies, and begin new episodes where they end."""
        with self._call("step"):
            return super().step_and_maybe_reset(tensordict)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """End the processes, also those that have ended or do not answer."""
        try:
            super().close(raise_if_closed=raise_if_closed)
        except (OSError, EOFError, RuntimeError):
            if not self._errors():
                raise
        self._reports.cleanup()

    @contextlib.contextmanager
    def _call(self, method: str) -> Iterator[None]:
        """Raise what a copy has reported in place of what its end leads to."""
        try:
            with watched(self._label, method, None, lambda _: None):
                yield
        except (OSError, EOFError, RuntimeError) as error:
            if errors := self._errors():
                raise RunError(errors[0]) from error
            raise

    def _errors(self) -> list[str]:
        return [file.read_text(encoding="utf-8") for file in sorted(Path(self._reports.name).glob("*"))]


@dataclass(frozen=True)
class _Copy:
    """Makes a copy in its process; also one in this process, which TorchRL reads the shapes from."""

    make: Callable[[Path | None], EnvBase]
    reports: Path
    parent: int

    def __call__(self) -> EnvBase:
        if os.getpid() == self.parent:
            return self.make(None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all; the parent ends the copies
        return self.make(self.reports)
