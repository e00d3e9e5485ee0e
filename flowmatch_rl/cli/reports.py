"""The command ``report``."""

from collections.abc import Sequence
from pathlib import Path

from flowmatch_rl import experiments
from flowmatch_rl.cli.parser import ALLOW_IMPORTS, make_parser, read_options
from flowmatch_rl.trust import allow_imports


def report(args: Sequence[str]) -> int:
    """Compare runs on one page.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.
    """
    parser = make_parser("report", "Compare runs on one page, report.html, and report.png.", with_files=False)
    parser.add_argument("folders", type=str, nargs="+", help="Folders of comparisons, or with runs somewhere below.")
    parser.add_argument(
        "--output", type=str, default=None, help="Folder of the page; the first of the folders if none."
    )
    parser.add_argument("--level", type=float, default=0.95, help="Level of the bootstrap intervals, such as 0.8.")
    parser.add_argument("--allow_imports", type=list[str], default=[], help=ALLOW_IMPORTS)
    options = read_options(parser, args)
    allow_imports(options["allow_imports"])
    folders = [Path(folder) for folder in options["folders"]]
    for path in experiments.write_report(folders, Path(options["output"] or folders[0]), options["level"]):
        print(path)
    return 0
