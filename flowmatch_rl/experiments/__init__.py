"""Comparisons, studies and reports; their parts are imported when they are first used."""

from typing import TYPE_CHECKING

from flowmatch_rl.doors import lazy_exports

if TYPE_CHECKING:
    from flowmatch_rl.experiments.improvement import improve
    from flowmatch_rl.experiments.report import write_report
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["improve", "write_report"]
