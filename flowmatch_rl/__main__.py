"""Entry point of ``flowmatch-rl`` and ``python -m flowmatch_rl``."""

import os
import select
import signal
import sys
import traceback
from pathlib import Path
from types import TracebackType

from flowmatch_rl.cli import run
from flowmatch_rl.redaction import redact


def main() -> None:
    """Run the command line with settings of the process that must precede the import of torch, which ``run`` does."""
    # Two threads beside a busy neighbour stall each other by a factor of ten; the user may ask for more.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # A user's own class in the folder of the command is found by its import path, as with python -m; after all others.
    sys.path.append(str(Path.cwd()))
    sys.excepthook = show_error
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _reader_has_ended() -> bool:
    """Whether what reads the output has ended, as ``head`` does after its lines."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(flags & select.POLLERR for _, flags in poll.poll(0))


def show_error(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    """Print an error with its traceback, as Python does, but for the passwords in it.

    Args:
        kind: Its class.
        error: The error.
        place: Where it was raised.
    """
    print(redact("".join(traceback.format_exception(kind, error, place))), end="", file=sys.stderr)


if __name__ == "__main__":
    main()
