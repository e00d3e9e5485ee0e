"""The front door: commands by name, and how each ends."""

import contextlib
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial

from flowmatch_rl import __version__, cli
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.cli.messages import EXAMPLES, print_error, unknown_command
from flowmatch_rl.cli.quiet import quieten
from flowmatch_rl.files import out_of_space

COMMANDS: dict[str, tuple[str, Callable[[], Callable[[list[str]], int]]]] = {
    "fit": ("Train a model, test it, and draw its figures.", lambda: partial(cli.train, "fit")),
    "validate": ("Evaluate a checkpoint on the validation data.", lambda: partial(cli.train, "validate")),
    "test": ("Evaluate a checkpoint on the test data.", lambda: partial(cli.train, "test")),
    "predict": ("Write samples of a checkpoint to a table.", lambda: partial(cli.train, "predict")),
    "convert": ("Copy files in another layout into a data set of transitions.", lambda: cli.convert),
    "collect": ("Let a policy act in an environment and write a data set.", lambda: cli.collect),
    "improve": ("Train a policy for any reward from an occupancy.", lambda: cli.improve),
    "export": ("Write a trained model as an ONNX or PyTorch program.", lambda: cli.export),
    "compare": ("Train several methods on several tasks with several seeds.", lambda: cli.compare),
    "sweep": ("Search for the values of options with which a model does best.", lambda: cli.sweep),
    "report": ("Show runs beside each other on one page.", lambda: cli.report),
    "estimators": ("Measure the errors of estimators on bandits.", lambda: cli.estimators),
    "deliver": ("Deliver to MLflow what runs tracked while it did not answer.", lambda: cli.deliver),
    "doctor": ("Check what runs need, and say what to do about what is wrong.", lambda: cli.doctor),
    "ui": ("Show the tracked runs in a browser.", lambda: cli.ui),
}
"""Help of each command, and how its function is imported, which returns the exit status."""

_FIRST = ("fit", "test", "compare", "report")

_HELP = "\n".join(
    [
        "usage: flowmatch-rl [-h] [--version] COMMAND ...",
        "",
        "Flow-based reinforcement learning on PyTorch Lightning and TorchRL.",
        "",
        "commands:",
        *(f"  {name:<12}{text}" for name, (text, _) in COMMANDS.items()),
        "",
        "begin with:",
        *(f"  flowmatch-rl {name} {arguments}" for name, arguments in EXAMPLES.items() if name in _FIRST),
        "",
        "configurations, overlays, models, data and the options used most: flowmatch-rl fit --help",
        "options of a command: flowmatch-rl COMMAND --help",
    ]
)


def run(args: list[str] | None = None) -> int:
    """Run the command line.

    Errors that a user can act on take three lines at most. With ``FLOWMATCH_RL_DEBUG`` in the environment they come
    with their traceback, as all other errors do.

    Args:
        args: Arguments; those of the process if None.

    Returns:
        Exit status: 0; 1 for a run that cannot continue, 2 for wrong arguments or files, 129, 130 and 143 for
        an interruption.
    """
    given = sys.argv[1:] if args is None else args
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    name = given[0] if given else ""
    if name in ("-h", "--help", "--version"):
        print(f"flowmatch-rl {__version__}" if name == "--version" else _HELP)
        return 0
    if name not in COMMANDS:
        return print_error(unknown_command(name, COMMANDS))
    try:
        with _without_collections():
            command = COMMANDS[name][1]()
        quieten()
        return command(given[1:])
    except (UserError, RunError) as error:
        if os.environ.get("FLOWMATCH_RL_DEBUG"):
            raise
        return print_error(_with_notes(str(error), error), code=1 if isinstance(error, RunError) else 2)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT, given)
    except Exception as error:
        full = out_of_space(error)
        if full is None or os.environ.get("FLOWMATCH_RL_DEBUG"):
            raise
        reason = str(full).strip().partition("\n")[0]
        advice = "; ".join(getattr(error, "__notes__", ["run the same command again"]))
        return print_error(f"the disk is full ({reason}); make room, then {advice}", code=1)
    except SystemExit as end:
        # Lightning ends an interrupted training with status 1, from inside the handler of the interruption.
        if isinstance(end.__context__, KeyboardInterrupt):
            return _interrupted(signal.SIGINT, given)
        # Lightning's SIGTERMException is a kind of SystemExit, the only one; to import it would take seconds.
        return int(end.code or 0) if type(end) is SystemExit else _interrupted(signal.SIGTERM, given)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Collect no garbage in a ``with`` block: among the modules of an import it takes an eighth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _with_notes(message: str, error: Exception) -> str:
    """A message in one line with what callbacks have added, such as how to resume."""
    return "; ".join([message, *getattr(error, "__notes__", [])])


def _interrupted(number: int, args: list[str]) -> int:
    return print_error(f"interrupted; continue with: flowmatch-rl {shlex.join(args)}", code=128 + number)
