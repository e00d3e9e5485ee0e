"""The command ``sweep``, which searches for hyperparameters."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.arguments import compose, shared_arguments, take_entries
from flowmatch_rl.cli.checking import check_run
from flowmatch_rl.cli.messages import with_hint
from flowmatch_rl.cli.names import find_class
from flowmatch_rl.cli.parser import make_parser, read_options, user_errors
from flowmatch_rl.configuration import drop_replaced, lay_over
from flowmatch_rl.experiments.executors import Executor, LocalExecutor
from flowmatch_rl.experiments.sweeps import run
from flowmatch_rl.experiments.sweeps.plan import Sweep


def sweep(args: Sequence[str]) -> int:
    """Search for the values of options with which a model does best.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    parser = make_parser("sweep", "Search for the values of options with which a model does best, by Optuna.")
    parser.add_argument("--output", type=str, required=True, help="Folder of the sweep; one that exists resumes.")
    parser.add_class_arguments(Sweep, instantiate=False)
    parser.add_argument("--executor", type=Executor, default=LocalExecutor(), help="Where the runs are made.")
    parser.add_argument("--workers", type=int, default=1, help="Runs at a time; with 1 the sweep is reproducible.")
    parser.add_argument(
        "--dry_run", type=bool, nargs="?", const=True, default=False, help="Only check the space, and print commands."
    )
    words, entries = take_entries(args, "options", "space")
    options = read_options(parser, *compose(words))
    options |= {name: options[name] | more for name, more in entries.items()}
    output, executor, workers, dry_run = (options.pop(name) for name in ("output", "executor", "workers", "dry_run"))
    with user_errors():
        try:
            plan = Sweep(**options)
        except UserError as error:
            raise UserError(with_hint(str(error), ())) from error
    if dry_run:
        run.check_space(plan, Path(output), check_run)
        print("\n".join(plan.jobs(Path(output), 0, point)[0].describe() for _, point in plan.probes()))
    else:
        run.run_sweep(plan, Path(output), check_run, merge, executor, workers)
    return 0


def merge(overlays: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Overlays as one.

    Args:
        overlays: Contents of configuration files, the last one on top.
    """
    return functools.reduce(lay_over, drop_replaced(overlays, find_class, shared_arguments), {})
