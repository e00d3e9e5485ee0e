"""The commands that make data sets of transitions: ``convert`` and ``collect``."""

import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]

import flowmatch_rl
from flowmatch_rl.cli.fitting import check_acts
from flowmatch_rl.cli.messages import Parser, report, shorten
from flowmatch_rl.data import Layout, TransitionStore, collect_transitions, convert_layout
from flowmatch_rl.types import RunError

_PACKAGE = Path(flowmatch_rl.__file__).parent


def make_data(args: Sequence[str]) -> int:
    """Run ``convert`` or ``collect``.

    Args:
        args: The command and its options.

    Returns:
        Exit status: 0; 1 for a collection that could not go on, 2 for wrong arguments or files, 130 for an
        interruption.
    """
    debug = bool(os.environ.get("FLOWMATCH_RL_DEBUG"))
    try:
        store = DATA_COMMANDS[args[0]](args[1:])
    except KeyboardInterrupt:
        return report("interrupted; the same command goes on from here", code=128 + signal.SIGINT)
    except (RunError, ValueError, OSError) as error:
        if debug or not _is_ours(error):
            raise
        return report(shorten(str(error)), code=1 if isinstance(error, RunError) else 2)
    print(_summary(store))
    return 0


def _convert(args: Sequence[str]) -> TransitionStore:
    parser = _parser("convert", "Copy transitions from files in another layout into a data set to train on.")
    parser.add_argument("--layout", type=Layout, required=True, help="Where the transitions are, and how laid out.")
    options = _options(parser, args)
    return convert_layout(options["layout"], options["output"], options["progress"])


def _collect(args: Sequence[str]) -> TransitionStore:
    parser = _parser("collect", "Let a policy act in an environment and write what happens as a data set to train on.")
    parser.add_function_arguments(collect_transitions, skip={"path", "progress"})
    options = _options(parser, args)
    if options["policy"] is not None:
        check_acts(options["policy"], options["environment"])
    return collect_transitions(path=options.pop("output"), **options)


DATA_COMMANDS: dict[str, Callable[[Sequence[str]], TransitionStore]] = {"convert": _convert, "collect": _collect}
"""Commands that make data sets, by name."""

DATA_COMMANDS_HELP = (
    "Two more commands make data sets of transitions: 'convert' copies files in another layout, 'collect' lets a "
    "policy act in an environment. For help on one run it with --help."
)


def _parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"flowmatch-rl {command}", description=description)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with options; may be repeated.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the data set, which must not exist.")
    parser.add_argument("--progress", type=bool, default=True, help="Whether to show a bar.")
    return parser


def _options(parser: Parser, args: Sequence[str]) -> dict[str, Any]:
    """Values of the options by name, classes instantiated."""
    options: Any = parser.instantiate_classes(parser.parse_args(list(args)))
    return {name: value for name, value in vars(options).items() if name != "config"}


def _is_ours(error: BaseException) -> bool:
    """Whether an error is about an argument or a file, not out of a mistake of the package's own."""
    frames = traceback.extract_tb(error.__traceback__)
    # The parser raises what the classes that it makes say, in its own words.
    made = any(frame.name == _options.__name__ for frame in frames)
    return made or isinstance(error, RunError | OSError) or Path(frames[-1].filename).is_relative_to(_PACKAGE)


def _summary(store: TransitionStore) -> str:
    """Where the data set is, what it holds, and the command that trains on it."""
    info = store.info
    trajectories = "" if info.num_trajectories is None else f" in {info.num_trajectories:,} trajectories"
    names = ", ".join(info.columns[:6]) + (", ..." if len(info.columns) > 6 else "")
    lines = [
        f"{store.path}: {info.num_transitions:,} transitions{trajectories}; "
        f"{info.observation_dim} columns ({names}), actions of dimension {info.action_dim}",
        *info.provenance.get("remarks", ()),
        f"train with: flowmatch-rl fit --model OccupancyModule --data OfflineData --data.path {store.path}",
    ]
    return "\n".join(lines)
