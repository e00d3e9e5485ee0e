"""The commands ``compare`` and ``estimators``, which compare methods and estimators."""

from collections.abc import Sequence
from pathlib import Path

from flowmatch_rl.cli.arguments import compose, take_entries
from flowmatch_rl.cli.checking import check_runs
from flowmatch_rl.cli.names import known_names
from flowmatch_rl.cli.parser import make_parser, read_options, user_errors
from flowmatch_rl.experiments import comparison
from flowmatch_rl.experiments.estimator_study import study_estimators
from flowmatch_rl.experiments.executors import Executor, LocalExecutor
from flowmatch_rl.experiments.plan import Plan


def compare(args: Sequence[str]) -> int:
    """Train methods on tasks with several seeds, and report on them.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    parser = make_parser("compare", "Train methods on tasks with several seeds, and report on them.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the comparison; one that exists resumes.")
    parser.add_class_arguments(Plan, instantiate=False)
    parser.add_argument("--executor", type=Executor, default=LocalExecutor(), help="Where the runs are made.")
    parser.add_argument("--workers", type=int | None, default=None, help="Runs at a time; one per core if null.")
    parser.add_argument("--dry_run", type=bool, nargs="?", const=True, default=False, help="Only print the commands.")
    words, entries = take_entries(args, "options")
    options = read_options(parser, *compose(words))
    options |= {name: options[name] | more for name, more in entries.items()}
    output, executor, workers, dry_run = (options.pop(name) for name in ("output", "executor", "workers", "dry_run"))
    with user_errors():
        plan = Plan(**options)
    if dry_run:
        print("\n".join(comparison.list_commands(plan, Path(output))))
    else:
        comparison.compare(plan, Path(output), executor, workers, check_runs)
    return 0


def estimators(args: Sequence[str]) -> int:
    """Measure the errors of estimators of the posterior mean on bandits.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    parser = make_parser("estimators", "Measure the errors of estimators of the posterior mean on bandits.")
    parser.known_names = known_names()
    parser.add_function_arguments(study_estimators)
    for path in study_estimators(**read_options(parser, *compose(args))):
        print(path)
    return 0
