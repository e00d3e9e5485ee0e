"""The commands beside Lightning's: ``convert`` and ``collect`` make data sets, ``compare`` and ``report`` studies."""

import os
import shlex
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
from lightning.pytorch.utilities.exceptions import SIGTERMException

import flowmatch_rl
from flowmatch_rl.checks import RunError
from flowmatch_rl.cli.fitting import check_acts
from flowmatch_rl.cli.messages import Parser, report
from flowmatch_rl.configuration import shorten
from flowmatch_rl.data import Layout, TransitionStore, collect_transitions, convert_layout
from flowmatch_rl.experiments.comparison import compare, list_commands
from flowmatch_rl.experiments.estimator_study import study_estimators
from flowmatch_rl.experiments.executors import Executor, LocalExecutor
from flowmatch_rl.experiments.plan import Plan
from flowmatch_rl.experiments.report import write_report

_PACKAGE = Path(flowmatch_rl.__file__).parent


def run_command(args: Sequence[str]) -> int:
    """Run one of ``COMMANDS``.

    Args:
        args: The command and its options.

    Returns:
        Exit status: 0; 1 for something that could not go on, 2 for wrong arguments or files, 130 and 143 for an
        interruption.
    """
    debug = bool(os.environ.get("FLOWMATCH_RL_DEBUG"))
    try:
        return COMMANDS[args[0]](args[1:])
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT, args)
    except SIGTERMException:
        return _interrupted(signal.SIGTERM, args)
    except SystemExit as end:
        # Lightning ends an interrupted training with status 1, from inside the handler of the interruption.
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        return _interrupted(signal.SIGINT, args)
    except (RunError, ValueError, OSError) as error:
        if debug or not _is_ours(error):
            raise
        return report(str(error), code=1) if isinstance(error, RunError) else report(shorten(str(error)))


def _interrupted(number: int, args: Sequence[str]) -> int:
    return report(f"interrupted; continue with: flowmatch-rl {shlex.join(args)}", code=128 + number)


def _convert(args: Sequence[str]) -> int:
    parser = _parser("convert", "Copy transitions from files in another layout into a data set to train on.")
    parser.add_argument("--layout", type=Layout, required=True, help="Where the transitions are, and how laid out.")
    options = _options(parser, args)
    return _show(convert_layout(options["layout"], options["output"], options["progress"]))


def _collect(args: Sequence[str]) -> int:
    parser = _parser("collect", "Let a policy act in an environment and write what happens as a data set to train on.")
    parser.add_function_arguments(collect_transitions, skip={"path", "progress"})
    options = _options(parser, args)
    if options["policy"] is not None:
        check_acts(options["policy"], options["environment"])
    return _show(collect_transitions(path=options.pop("output"), **options))


def _compare(args: Sequence[str]) -> int:
    parser = _bare_parser("compare", "Train methods on tasks with several seeds, and report on them.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the comparison; one that exists resumes.")
    parser.add_class_arguments(Plan, instantiate=False)
    parser.add_argument("--executor", type=Executor, default=LocalExecutor(), help="Where the runs are made.")
    parser.add_argument("--workers", type=int | None, default=None, help="Runs at a time; one per core if null.")
    parser.add_argument("--dry_run", type=bool, nargs="?", const=True, default=False, help="Only print the commands.")
    options = _options(parser, args)
    output, executor, workers, dry_run = (options.pop(name) for name in ("output", "executor", "workers", "dry_run"))
    plan = Plan(**options)
    if dry_run:
        print("\n".join(list_commands(plan, Path(output))))
    else:
        compare(plan, Path(output), executor, workers)
    return 0


def _report(args: Sequence[str]) -> int:
    parser = Parser(prog="flowmatch-rl report", description="Compare runs on one page, report.html, and report.png.")
    parser.add_argument("folders", type=str, nargs="+", help="Folders of comparisons, or with runs somewhere below.")
    parser.add_argument(
        "--output", type=str, default=None, help="Folder of the page; the first of the folders if none."
    )
    options = _options(parser, args)
    folders = [Path(folder) for folder in options["folders"]]
    for path in write_report(folders, Path(options["output"] or folders[0])):
        print(path)
    return 0


def _estimators(args: Sequence[str]) -> int:
    parser = _bare_parser("estimators", "Measure the errors of estimators of the posterior mean on bandits.")
    parser.add_function_arguments(study_estimators)
    for path in study_estimators(**_options(parser, args)):
        print(path)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "convert": _convert,
    "collect": _collect,
    "compare": _compare,
    "report": _report,
    "estimators": _estimators,
}
"""Commands beside Lightning's, by name."""

COMMANDS_HELP = (
    "More commands: 'convert' copies files in another layout into a data set of transitions, 'collect' lets a policy "
    "act in an environment, 'compare' trains several methods with several seeds, 'report' shows runs on one page, "
    "'estimators' measures the errors of estimators on bandits. For help on one run it with --help."
)


def _parser(command: str, description: str) -> Parser:
    parser = _bare_parser(command, description)
    parser.add_argument("--output", type=str, required=True, help="Folder of the data set, which must not exist.")
    parser.add_argument("--progress", type=bool, default=True, help="Whether to show a bar.")
    return parser


def _bare_parser(command: str, description: str) -> Parser:
    parser = Parser(prog=f"flowmatch-rl {command}", description=description)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with options; may be repeated.")
    return parser


def _show(store: TransitionStore) -> int:
    print(_summary(store))
    return 0


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
