"""The command ``deliver``: what runs have tracked and MLflow does not have."""

from collections.abc import Sequence
from pathlib import Path

from flowmatch_rl.callbacks.addresses import place_of
from flowmatch_rl.callbacks.delivered import what_is_left
from flowmatch_rl.callbacks.deliverer import deliver_all
from flowmatch_rl.callbacks.journal import journals
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.cli.parser import make_parser, read_options


def deliver(args: Sequence[str]) -> int:
    """Deliver to MLflow what runs have tracked while it did not answer.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.

    Raises:
        UserError: If a folder holds no tracked run, or MLflow can never take one of them.
        RunError: If MLflow does not answer.
    """
    parser = make_parser("deliver", "Deliver to MLflow what runs have tracked while it did not answer.", False)
    parser.add_argument("folders", type=str, nargs="+", help="Folders of runs, or with runs somewhere below.")
    parser.add_argument(
        "--tracking_uri",
        type=str | None,
        default=None,
        help="Where to; if null, where each run was to be tracked. An address with a password is not kept: give it.",
    )
    options = read_options(parser, args)
    left = []
    for path in _journals_below([Path(folder) for folder in options["folders"]]):
        address, known, rest = deliver_all(path, options["tracking_uri"])
        if remark := what_is_left(path, known, rest, address):
            left.append(remark) if not rest.is_empty else print(remark)
        if rest.is_empty:
            print(f"{path.parents[1]}: {known.metrics} metrics are in {place_of(address)}", flush=True)
    if left:
        raise RunError("\n".join(left))
    return 0


def _journals_below(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        here = [path for place in [folder, *_runs_below(folder)] for path in journals(place)]
        if not here:
            raise UserError(f"{folder} holds no run that was tracked by this version")
        found |= {path.resolve(): path for path in here}  # once, also where one folder holds another
    return list(found.values())


def _runs_below(folder: Path) -> list[Path]:
    return sorted({path.parents[1] for path in folder.rglob("tracking/*.jsonl") if path.parents[1] != folder})
