"""What stands between a run and the environment of a user: errors in one line, and an end to waiting."""

import contextlib
import os
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.endings import mark_action
from flowmatch_rl.envs.watchdog import CallTimeout, ends_run, watched


class MisfitError(Exception):
    """Something that an environment must not do; its text continues a sentence that begins with its name."""


def in_one_line(error: BaseException) -> str:
    """The message of an error of someone else's code in one line without colours, and where it was raised."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else text


@dataclass(frozen=True)
class Guard:
    """Names the environment in whatever goes wrong in it.

    Args:
        label: Name of the environment.
        timeout_s: Seconds after which a call is given up; None for no end.
        reports: Folder to write errors to, of a process whose end says nothing to the one that started it.
    """

    label: str
    timeout_s: float | None = None
    reports: Path | None = None

    @contextlib.contextmanager
    def __call__(self, method: str) -> Iterator[None]:
        """Guard a call of a method, in a ``with`` block.

        Args:
            method: What is called, for the message.

        Raises:
            RunError: In place of any error but those with a message for the user.
        """
        try:
            with watched(self.label, method, self.timeout_s, self._report):
                yield
        except (UserError, RunError):
            raise
        except (Exception, CallTimeout, SystemExit) as error:
            if ends_run(error):
                raise
            message = self._message(method, error)
            if self.reports is None:
                raise RunError(message) from error
            self._report(message)
            raise SystemExit(1) from error

    def _message(self, method: str, error: BaseException) -> str:
        if isinstance(error, CallTimeout):
            return str(error)
        if isinstance(error, MisfitError):
            return f"{self.label} {error}"
        return f"{self.label} raised {type(error).__name__} in {method}: {in_one_line(error)}"

    def _report(self, message: str) -> None:
        if self.reports is not None:
            (self.reports / str(os.getpid())).write_text(message, encoding="utf-8")


class Guarded(EnvBase):
    """An environment whose calls are guarded; goes before the class that makes them."""

    guard: Guard

    def _reset(self, tensordict: TensorDictBase | None = None, **options: Any) -> TensorDictBase:
        with self.guard("reset"):
            return super()._reset(tensordict, **options)  # pyright: ignore[reportAbstractUsage]

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        mark_action()
        with self.guard("step"):
            return super()._step(tensordict)  # pyright: ignore[reportAbstractUsage]
