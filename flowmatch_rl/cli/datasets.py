"""The commands that make data sets: ``convert`` and ``collect``."""

from collections.abc import Sequence
from typing import Any

from flowmatch_rl.cli.arguments import compose
from flowmatch_rl.cli.fitting import check_acts
from flowmatch_rl.cli.names import known_names
from flowmatch_rl.cli.parser import ALLOW_IMPORTS, CommandParser, make_parser, read_options, user_errors
from flowmatch_rl.data import (
    Layout,
    TransitionStore,
    collect_demonstrations,
    collect_transitions,
    convert_layout,
)
from flowmatch_rl.envs import Oracle
from flowmatch_rl.trust import allow_imports


def convert(args: Sequence[str]) -> int:
    """Copy transitions from files in another layout into a data set to train on.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    parser = _parser("convert", "Copy transitions from files in another layout into a data set to train on.")
    parser.add_argument("--layout", type=Layout, required=True, help="Where the transitions are, and how laid out.")
    parser.add_argument("--allow_imports", type=list[str], default=[], help=ALLOW_IMPORTS)
    options = read_options(parser, *compose(args))
    allow_imports(options["allow_imports"])
    print(_summary(convert_layout(options["layout"], options["output"], options["progress"])))
    return 0


def collect(args: Sequence[str]) -> int:
    """Let a policy, or a script of the environment, act and write what happens as a data set to train on.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    words, overlays = compose(args)
    oracles = [overlay["oracle"] for overlay in overlays if isinstance(overlay, dict) and "oracle" in overlay]
    if oracles and oracles[-1] is not None:
        return _collect_demonstrations(words, overlays)
    parser = _parser("collect", "Let a policy act in an environment and write what happens as a data set to train on.")
    parser.add_function_arguments(collect_transitions, skip={"path", "progress"})
    parser.add_argument(
        "--oracle",
        type=Oracle | None,
        default=None,
        help="Script that acts in place of a policy, in an OgbenchEnvironment; for the options that go with it: "
        "flowmatch-rl collect --oracle NavigateOracle --help.",
    )
    parser.add_argument("--allow_imports", type=list[str], default=[], help=ALLOW_IMPORTS)
    options = read_options(parser, words, overlays)
    allow_imports(options.pop("allow_imports"))
    del options["oracle"]  # None
    with user_errors():
        if options["policy"] is not None:
            check_acts(options["policy"], options["environment"])
    print(_summary(collect_transitions(path=options.pop("output"), **options)))
    return 0


def _collect_demonstrations(words: Sequence[str], overlays: Sequence[Any]) -> int:
    parser = _parser("collect", "Let a script of OGBench act and write what happens as a data set to train on.")
    parser.add_function_arguments(collect_demonstrations, skip={"path", "progress"})
    options = read_options(parser, words, overlays)
    print(_summary(collect_demonstrations(path=options.pop("output"), **options)))
    return 0


def _parser(command: str, description: str) -> CommandParser:
    parser = make_parser(command, description)
    parser.known_names = known_names()
    parser.add_argument("--output", type=str, required=True, help="Folder of the data set, which must not exist.")
    parser.add_argument("--progress", type=bool, default=True, help="Whether to show a bar.")
    return parser


def _summary(store: TransitionStore) -> str:
    """Where the data set is, what it holds, and the command that trains on it."""
    info = store.info
    trajectories = "" if info.num_trajectories is None else f" in {info.num_trajectories:,} trajectories"
    names = ", ".join(info.labels[:6]) + (", ..." if len(info.columns) > 6 else "")
    entries = f" ({', '.join(info.action_labels[:6])}{', ...' * (info.action_dim > 6)})" if info.action_labels else ""
    lines = [
        f"{store.path}: {info.num_transitions:,} transitions{trajectories}; "
        f"{info.observation_dim} columns ({names}), actions of dimension {info.action_dim}{entries}"
        f"{'' if info.has_rewards else '; no rewards'}",
        *info.provenance.get("remarks", ()),
        f"train with: flowmatch-rl fit --model OccupancyModule --data OfflineData --data.path {store.path}",
    ]
    return "\n".join(lines)
