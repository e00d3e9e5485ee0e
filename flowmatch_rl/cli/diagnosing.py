"""The command ``doctor``: whether runs can work here, and what to do if not."""

import importlib
from collections.abc import Sequence

from flowmatch_rl.cli.packages import is_complete, versions
from flowmatch_rl.cli.quiet import quieten


def doctor(args: Sequence[str]) -> int:
    """Look at what runs need, and say what to do about what is wrong.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status: 1 if something is broken, else 0.
    """
    first = versions()
    if not is_complete():
        print(f"{first}\nbroken       {first.label}; the rest is looked at once they are installed")
        return 1
    health = importlib.import_module("flowmatch_rl.cli.health")  # which needs all of them
    quieten()
    return health.examine(args, first)
