"""The command line; its parts are imported when they are first used."""

from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.cli.comparisons import compare, estimators
    from flowmatch_rl.cli.datasets import collect, convert
    from flowmatch_rl.cli.delivering import deliver
    from flowmatch_rl.cli.diagnosing import doctor
    from flowmatch_rl.cli.exporting import export
    from flowmatch_rl.cli.improving import improve
    from flowmatch_rl.cli.main import run
    from flowmatch_rl.cli.pages import ui
    from flowmatch_rl.cli.reports import report
    from flowmatch_rl.cli.sweeps import sweep
    from flowmatch_rl.cli.training import FlowMatchCLI, train
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FlowMatchCLI",
    "collect",
    "compare",
    "convert",
    "deliver",
    "doctor",
    "estimators",
    "export",
    "improve",
    "report",
    "run",
    "sweep",
    "train",
    "ui",
]
