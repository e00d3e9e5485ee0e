"""The command ``report``: runs beside each other on one page."""

from collections.abc import Sequence
from pathlib import Path

from flowmatch_rl.experiments.report_page import make_page
from flowmatch_rl.experiments.report_runs import read_study
from flowmatch_rl.experiments.report_statistics import summarize
from flowmatch_rl.figures import save_figure
from flowmatch_rl.figures.comparison import draw_comparison

PAGE, PICTURE = "report.html", "report.png"


class NothingToReportError(ValueError):
    """No run in the folders has been evaluated yet."""


def write_report(folders: Sequence[Path], output: Path) -> list[Path]:
    """Write ``report.html``, a page with its pictures inside, and ``report.png``.

    Args:
        folders: Folders of comparisons, of runs, or with runs somewhere below.
        output: Folder for both files; made if it does not exist.

    Returns:
        Paths of the files.

    Raises:
        ValueError: If a folder does not exist, or its files are damaged.
        NothingToReportError: If no run has a learning curve over environment steps.
    """
    study = read_study(folders)
    if not any(len(run.curve["env_steps"]) for run in study.runs):
        names = ", ".join(map(str, folders))
        raise NothingToReportError(
            f"no run in {names} has been evaluated on environment steps yet; there is nothing to report"
        )
    summary = summarize(study)
    title = " and ".join(folder.resolve().name for folder in folders)
    output.mkdir(parents=True, exist_ok=True)
    page, picture = output / PAGE, output / PICTURE
    page.write_text(make_page(title, summary), encoding="utf-8")
    ended = sum(run.score is not None for run in study.runs)
    note = f"{ended} of {sum(study.planned.values())} runs ended"
    save_figure(draw_comparison(summary.tasks, summary.aggregate, title, note), picture)
    return [page, picture]
