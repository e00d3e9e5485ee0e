"""The page of a report: one HTML file with its pictures inside."""

import base64
import html
import math
from collections.abc import Sequence

from flowmatch_rl.experiments.report_statistics import Row, Summary
from flowmatch_rl.figures.comparison import Aggregate, draw_aggregate, draw_task, encode_figure

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem; margin: 2rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.4rem; border-bottom: 1px solid #ddd; padding-bottom: 0.2rem; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: 0.2rem; }
th, td { text-align: right; padding: 0.25rem 0.9rem; border-bottom: 1px solid #e6e6e6; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: #555; font-weight: 600; border-bottom: 1px solid #999; }
.remarks { background: #fff7e6; border-left: 4px solid #e69f00; padding: 0.5rem 1rem 0.5rem 1.8rem; margin: 1rem 0; }
.wide { overflow-x: auto; }
.small { color: #555; font-size: 0.9rem; }
"""

_HOW_TO_READ = """
Curves are means over runs of the returns of the evaluations during training; bands are 95 % bootstrap intervals of the
mean, by resampling runs. Wall time is that of training, warm-up included, without evaluations; runs that share a
machine slow each other down. Tables and statistics are of the test at the end of each run, whose episodes start from
other states. The interquartile mean leaves out the lowest and the highest quarter of all runs. The probability of
improvement is that of a run of one method ending higher than a run of the other on the same task, equal returns
counting one half, averaged over tasks: 0.5 says that neither is better. Both have 95 % stratified bootstrap intervals:
runs are resampled within each task (Agarwal et al., arXiv:2108.13264).
"""


_UNKNOWN = "\N{EN DASH}"


def make_page(title: str, summary: Summary) -> str:
    """The page.

    Args:
        title: Title.
        summary: What it shows.

    Returns:
        HTML that needs no other file.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _remarks(summary.remarks)]
    aggregate = summary.aggregate
    if aggregate.mean is not None or aggregate.improvement is not None:
        parts += [
            "<h2>Over all tasks</h2>",
            _picture(encode_figure(draw_aggregate(aggregate)), "methods over all tasks"),
        ]
        parts += [_mean_table(aggregate), _improvement_table(aggregate)]
    for task, rows in zip(summary.tasks, summary.tables, strict=True):
        parts += [
            f"<h2>{html.escape(task.name)}</h2>",
            _picture(encode_figure(draw_task(task)), f"curves on {task.name}"),
        ]
        parts += [_task_table(rows)]
    parts += ["<h2>How to read this</h2>", f'<p class="small">{html.escape(_HOW_TO_READ.strip())}</p>']
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _remarks(remarks: Sequence[str]) -> str:
    if not remarks:
        return ""
    return '<ul class="remarks">' + "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks) + "</ul>"


def _picture(png: bytes, what: str) -> str:
    return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _task_table(rows: Sequence[Row]) -> str:
    head = ("method", "return", "std over runs", "95 % interval", "runs ended", "env steps / s")
    body = [
        (
            row.method,
            _number(row.mean),
            _number(row.std),
            _between(row.low, row.high),
            f"{row.ended} of {row.planned}",
            _number(row.steps_per_s),
        )
        for row in rows
    ]
    return _table("Return of the final test.", head, body)


def _mean_table(aggregate: Aggregate) -> str:
    if aggregate.mean is None:
        return ""
    rows = zip(aggregate.methods, aggregate.mean.tolist(), strict=True)
    body = [(name, _number(value, 3), _between(low, high, 3)) for name, (value, low, high) in rows]
    return _table("Normalised return over all tasks.", ("method", "interquartile mean", "95 % interval"), body)


def _improvement_table(aggregate: Aggregate) -> str:
    if aggregate.improvement is None:
        return ""
    body = []
    for name, row in zip(aggregate.methods, aggregate.improvement.tolist(), strict=True):
        cells = [f"{_number(value, 2)} {_bracket(low, high)}" for value, low, high in row]
        body.append((name, *cells))
    return _table("Probability that the row's method ends higher than the column's.", ("", *aggregate.methods), body)


def _table(caption: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in body]
    rows = "\n".join(rows)
    caption = f"<caption>{html.escape(caption)}</caption>"
    return f'<div class="wide"><table>{caption}<thead><tr>{top}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _number(value: float, decimals: int = 1) -> str:
    return _UNKNOWN if math.isnan(value) else f"{value:,.{decimals}f}"


def _between(low: float, high: float, decimals: int = 1) -> str:
    return _UNKNOWN if math.isnan(low) else f"{_number(low, decimals)} to {_number(high, decimals)}"


def _bracket(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"
