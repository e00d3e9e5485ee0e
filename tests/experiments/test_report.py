"""Reports: their numbers against runs made up by hand, and what they say about what is missing."""

import base64
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import pytest
import torch
import yaml

from flowmatch_rl.evaluation import LossPoint, PolicyPoint, ReturnPoint, names_of
from flowmatch_rl.experiments.report import make_page
from flowmatch_rl.experiments.runs import RETURN, SUCCESS, Score, read_study
from flowmatch_rl.experiments.statistics import Summary, summarize
from flowmatch_rl.figures.comparison import Aggregate, MethodCurves, TaskCurves, draw_aggregate, draw_task
from tests.callbacks.test_figures import is_drawn
from tests.cli.support import Outcome, call
from tests.combinations import one_test

ONLINE, OFFLINE = ",".join(names_of(ReturnPoint(0))), ",".join(names_of(PolicyPoint(0)))
"""First lines of the tables of learning curves: steps, return, what else is measured, and seconds."""


def make_run(
    folder: Path,
    score: float | None,
    *,
    points: int = 4,
    pace: float = 1.0,
    return_range: tuple[float, float] | None = None,
    timed: bool = True,
    head: str = ONLINE,
    commit: str = "abc",
    **more: str,
) -> None:
    """A run that has been evaluated every ten steps, at ``pace`` seconds per step, and has ended if it has a score."""
    (folder / "figures").mkdir(parents=True)
    (folder / "output.log").touch()
    final = 50.0 if score is None else score
    others = ["" if name == "success_rate" else 0.5 for name in head.split(",")[2:-1]]
    numbers = [[10 * i, final * i / 4, *others, 10 * i * pace if timed else ""] for i in range(1, points + 1)]
    rows = [",".join(map(str, row)) for row in numbers]
    (folder / "figures" / "learning_curve.csv").write_text("\n".join([head, *rows]) + "\n")
    if score is not None:
        result = {"task": "Made-up-v0", "env_steps": 40, "gradient_steps": 30, "return_range": return_range}
        metrics = {"test/return_mean": score, "test/return_std": 1.0}
        (folder / "result.json").write_text(json.dumps(result | {"commit": commit, "metrics": metrics} | more))


def make_comparison(
    folder: Path, scores: dict[str, dict[str, list[float | None]]], ranges: dict[str, Any] | None = None, **options: Any
) -> Path:
    """A comparison with scores by task, method and seed; None is a run that goes on."""
    runs = []
    for task, methods in scores.items():
        for method, values in methods.items():
            for seed, score in enumerate(values):
                runs.append([task, method, seed])
                make_run(folder / task / method / str(seed), score, **options)
    record = {
        "tasks": {task: {"return_range": (ranges or {}).get(task)} for task in scores},
        "methods": {method: {} for methods in scores.values() for method in methods},
        "options": {},
        "runs": runs,
        "parent_run": None,
    }
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder


SCORES: dict[str, dict[str, list[float | None]]] = {
    "swing": {"a": [10.0, 20.0, 60.0], "b": [30.0, 40.0, 50.0]},
    "walk": {"a": [200.0, 300.0, 400.0], "b": [100.0, 500.0, 900.0]},
}
RANGES = {"swing": [0.0, 100.0], "walk": [0.0, 1000.0]}


def report(*arguments: object) -> Outcome:
    return call(["report", *map(str, arguments)])


class Page(HTMLParser):
    """Tables, pictures and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.pictures: list[bytes] = []
        self.addresses: list[str] = []
        self.text = ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value or "")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.pictures.append(base64.b64decode(self.addresses[-1].partition("base64,")[2]))
        self._cell = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._cell = False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_comparison(tmp_path_factory.mktemp("study") / "out", SCORES, RANGES)
    outcome = report(folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.split() == [str(folder / name) for name in ("report.html", "report.png", "results.csv")]
    return folder


def test_page_holds_its_pictures_and_needs_nothing_else(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    page = Page(text)
    assert len(page.pictures) == 3  # all tasks, and each
    assert all(iio.imread(picture).std() > 10.0 for picture in page.pictures)
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    assert "<script" not in text
    assert is_drawn(whole / "report.png")


def test_tables_hold_means_deviations_runs_and_speed(whole: Path) -> None:
    _, _, swing, walk = Page((whole / "report.html").read_text()).tables
    head = ["method", "return", "std over runs", "95 % interval", "return over training", "runs ended", "env steps / s"]
    assert swing[0] == head
    assert [row[:3] for row in swing[1:]] == [["a", "30.0", "26.5"], ["b", "40.0", "10.0"]]
    assert [row[:3] for row in walk[1:]] == [["a", "300.0", "100.0"], ["b", "500.0", "400.0"]]
    # The lowest and the highest resample of three runs come up once in 27 each, more often than in 40.
    assert [row[3] for row in swing[1:]] == ["10.0 to 60.0", "30.0 to 50.0"]
    # Evaluations are at 10, 20, 30 and 40 steps, of a quarter to the whole of the last: on average 5 / 8 of it.
    assert [row[4] for row in swing[1:] + walk[1:]] == ["18.8", "25.0", "187.5", "312.5"]
    assert all(row[5:] == ["3 of 3", "1.0"] for row in swing[1:] + walk[1:])


def test_level_of_the_intervals_is_that_asked_for(whole: Path, tmp_path: Path) -> None:
    assert report(whole, "--level=0.8", f"--output={tmp_path}").code == 0
    page = Page((tmp_path / "report.html").read_text())
    _, _, swing, _ = page.tables
    assert swing[0][3] == "80 % interval"
    # Of the 27 resamples the lowest is below a tenth, the next three make four.
    assert [row[3] for row in swing[1:]] == ["13.3 to 46.7", "33.3 to 46.7"]
    assert "bands are 80 % bootstrap" in page.text
    assert "80 % stratified" in page.text
    assert "95 %" not in page.text


def test_every_interval_of_a_lower_level_is_narrower(whole: Path) -> None:
    study = read_study([whole])
    wide, narrow = (summarize(study, level) for level in (0.95, 0.5))

    def width(summary: Summary) -> dict[str, float]:
        aggregate, method = summary.aggregate, summary.tasks[0].methods[0]
        assert method.by_steps is not None
        assert method.by_seconds is not None
        assert aggregate.improvement is not None
        found = {
            "curve by steps": method.by_steps.interval[:, -1],
            "curve by seconds": method.by_seconds.interval[:, -1],
            "score": method.interval,
            "improvement": aggregate.improvement[0, 1, 1:],
        }
        for name, means in (("iqm", aggregate.interquartile_mean), ("mean", aggregate.mean), ("area", aggregate.area)):
            assert means is not None
            found[name] = means[0, 1:]
        return {name: float(bounds[1] - bounds[0]) for name, bounds in found.items()}

    assert all(0.0 < less < width(wide)[name] for name, less in width(narrow).items()), (width(wide), width(narrow))
    assert draw_task(narrow.tasks[0]).axes[2].get_xlabel() == "return, final test (mean, 50 %)"


@one_test
@pytest.mark.parametrize(
    ("level", "words"), [("0", "level must"), ("80", "got 80.0"), ("nan", "got 'nan'"), ("x", "got 'x'")]
)
def test_level_outside_of_its_range_is_refused_in_one_line(level: str, words: str, whole: Path, tmp_path: Path) -> None:
    # A single run has no interval, whose own check would do.
    single = make_comparison(tmp_path / "single", {"swing": {"a": [10.0]}})
    for folder in (whole, single):
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        outcome = report(folder, f"--level={level}")
        assert outcome.code == 2
        assert len(outcome.error_lines) == 1
        assert words in outcome.err
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_aggregate_is_that_worked_out_by_hand(whole: Path) -> None:
    means, improvement, *_ = Page((whole / "report.html").read_text()).tables
    # a: 0.1 | 0.2 0.2 0.3 0.4... sorted 0.1 0.2 0.2 0.3 0.4 0.6, one left out on either side: mean 1.1 / 4.
    # b: 0.1 0.3 0.4 0.5 0.5 0.9: 1.7 / 4.
    assert means[0] == ["method", "interquartile mean", "mean over tasks", "interquartile mean over training"]
    assert [row[1][:5] for row in means[1:]] == ["0.275", "0.425"]
    # a: (0.3 + 0.3) / 2, b: (0.4 + 0.5) / 2.
    assert [row[2][:5] for row in means[1:]] == ["0.300", "0.450"]
    # 5 / 8 of the first.
    assert [row[3][:5] for row in means[1:]] == ["0.172", "0.266"]
    lows, highs = zip(*(map(float, row[2].partition("[")[2].strip("]").split(",")) for row in means[1:]), strict=True)
    assert all(low < mean < high for low, mean, high in zip(lows, (0.3, 0.45), highs, strict=True))
    # a above b: swing 3 of 9 pairs (60 above all), walk 3 of 9 (each above 100): 1/3.
    assert improvement[0] == ["", "a", "b"]
    assert [improvement[1][2][:4], improvement[2][1][:4]] == ["0.33", "0.67"]


def test_interval_of_the_aggregate_holds_it_and_is_narrower_with_more_runs(tmp_path: Path) -> None:
    widths = []
    for number in (3, 24):
        scores = {"swing": {"a": [10.0 * (i % 3) for i in range(number)], "b": [0.0] * number}}
        summary = summarize(read_study([make_comparison(tmp_path / str(number), scores, RANGES)]))
        assert summary.aggregate.interquartile_mean is not None
        value, low, high = summary.aggregate.interquartile_mean[0].tolist()
        assert low <= value <= high
        widths.append(high - low)
        assert summary.aggregate.improvement is not None
        assert float(summary.aggregate.improvement[0, 1, 0]) == pytest.approx(5 / 6)
    assert widths[1] < 0.6 * widths[0]


def test_curves_are_means_over_runs_by_steps_and_by_seconds(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0, 30.0]}})
    (curves,) = summarize(read_study([tmp_path])).tasks[0].methods
    assert curves.by_steps is not None
    assert curves.by_steps.x.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert curves.by_steps.mean.tolist() == [5.0, 10.0, 15.0, 20.0]
    assert curves.by_seconds is not None
    place = curves.by_seconds.x.tolist().index(40.0)
    assert float(curves.by_seconds.mean[place]) == 20.0
    torch.testing.assert_close(curves.by_seconds.mean, 0.5 * curves.by_seconds.x)


@pytest.mark.parametrize(
    ("head", "axis", "rate"),
    [(ONLINE, "environment steps", "env steps / s"), (OFFLINE, "gradient steps", "updates / s")],
)
def test_axis_and_rate_are_of_the_steps_that_runs_count(head: str, axis: str, rate: str, tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0, 30.0]}}, head=head, pace=0.5)
    summary = summarize(read_study([tmp_path]))
    (curves,) = summary.tasks[0].methods
    assert curves.by_steps is not None
    assert curves.by_steps.x.tolist() == [10.0, 20.0, 30.0, 40.0]
    assert draw_task(summary.tasks[0]).axes[0].get_xlabel() == axis
    (table,) = Page(make_page("", summary)).tables
    assert (table[0][-1], table[1][-1]) == (rate, "2.0")


@pytest.mark.usefixtures("undrawn")
def test_steps_of_different_kinds_share_no_axis(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0], "b": [30.0]}, "walk": {"a": [1.0], "b": [2.0]}})
    table = tmp_path / "swing" / "b" / "0" / "figures" / "learning_curve.csv"
    table.write_text(table.read_text().replace("env_steps", "gradient_steps"))
    summary = summarize(read_study([tmp_path]))
    swing, walk = ([method.by_steps is None for method in task.methods] for task in summary.tasks)
    assert (swing, walk) == ([True, True], [False, False])
    assert all(method.by_seconds is not None for task in summary.tasks for method in task.methods)
    assert any("On swing some runs count" in remark and "no common axis" in remark for remark in summary.remarks)
    tables = Page(make_page("", summary)).tables
    assert [row[-1] for row in tables[-2]] == ["steps / s", "\N{EN DASH}", "\N{EN DASH}"]
    assert tables[-1][0][-1] == "env steps / s"


def test_panel_says_that_runs_count_different_steps() -> None:
    unknown = MethodCurves("a", None, None, torch.empty(0), None)
    for steps, words in (((), "not known yet"), (("env_steps", "gradient_steps"), "runs count different steps")):
        panel, *_ = draw_task(TaskCurves("swing", steps, "return", [unknown])).axes
        assert [text.get_text() for text in panel.texts] == [words]


def test_runs_of_unequal_length_are_shown_as_far_as_they_go_and_counted(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0, 30.0, None]}}, RANGES)
    table = tmp_path / "swing" / "a" / "2" / "figures" / "learning_curve.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:3]) + "\n")
    summary = summarize(read_study([tmp_path]))
    curve = summary.tasks[0].methods[0].by_steps
    assert curve is not None
    assert curve.num_runs.tolist() == [3, 3, 2, 2]
    assert curve.mean.tolist()[2:] == [15.0, 20.0]
    assert curve.interval.isnan().any(0).tolist() == [False, False, True, True]
    (row,) = summary.tables[0].itertuples()
    assert (row.planned, row.ended, row.mean) == (3, 2, 20.0)
    assert report(tmp_path).code == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "2 of 3 runs have ended, 1 have begun" in page.text
    assert page.tables[-1][1][5] == "2 of 3"


def test_run_that_has_not_begun_counts_as_planned(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0], "b": [20.0]}})
    record = json.loads((tmp_path / "comparison.json").read_text())
    record["runs"] += [["swing", "b", 1], ["swing", "c", 0]]
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    summary = summarize(read_study([tmp_path]))
    assert [(row.method, row.ended, row.planned) for row in summary.tables[0].itertuples()] == [
        ("a", 1, 1),
        ("b", 1, 2),
        ("c", 0, 1),
    ]
    assert math.isnan(summary.tables[0]["mean"][2])
    assert report(tmp_path).code == 0


def test_run_counts_whose_record_was_copied_after_the_comparison_was_written(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0, 30.0]}})
    record = json.loads((tmp_path / "comparison.json").read_text())
    record["runs"] = [["swing", "a", 0]]
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    (tmp_path / "swing" / "a" / "1" / "output.log").unlink()
    (row,) = summarize(read_study([tmp_path])).tables[0].itertuples()
    assert (row.planned, row.ended, row.mean) == (2, 2, 20.0)


def succeed(folder: Path, *runs: str) -> None:
    """Have runs with a return of minus so many steps measure a success rate of 1 less a hundredth of them."""
    for run in runs:
        path = folder / run / "result.json"
        result = json.loads(path.read_text())
        result["metrics"]["test/success_rate"] = 1.0 + result["metrics"]["test/return_mean"] / 100.0
        path.write_text(json.dumps(result))


def test_success_rates_are_the_scores_of_tasks_whose_runs_all_measured_them(tmp_path: Path) -> None:
    scores: dict[str, Any] = {f"task{number}": {"a": [-50.0, -60.0], "b": [-10.0 * number, None]} for number in (1, 2)}
    make_comparison(tmp_path, scores)
    succeed(tmp_path, *(f"task{number}/{run}" for number in (1, 2) for run in ("a/0", "a/1", "b/0")))
    study = read_study([tmp_path])
    assert set(study.scores.values()) == {Score(SUCCESS, (0.0, 1.0))}
    summary = summarize(study)
    text = make_page("", summary)
    means, _, first, _ = Page(text).tables
    assert "Success rate over all tasks." in text
    assert "for want of a scale" not in text
    assert [row[2][:5] for row in means[1:]] == ["0.450", "0.850"]
    assert first[0][:5] == ["method", "success rate", "std over runs", "95 % interval", "return"]
    assert [row[1:5] for row in first[1:]] == [
        ["0.450", "0.071", "0.400 to 0.500", "-55.0"],
        ["0.900", "\N{EN DASH}", "\N{EN DASH}", "-10.0"],
    ]
    *_, final = draw_task(summary.tasks[0]).axes
    assert final.get_xlabel().startswith("success rate, final test")


@pytest.mark.usefixtures("undrawn")
def test_returns_are_the_scores_where_their_range_is_stated_or_a_run_measured_no_success(tmp_path: Path) -> None:
    scores: dict[str, Any] = {"stated": {"a": [-50.0]}, "partly": {"a": [-50.0, -60.0]}, "success": {"a": [-20.0]}}
    make_comparison(tmp_path, scores, {"stated": [-100.0, 0.0]}, return_range=(-200.0, 0.0))
    succeed(tmp_path, "stated/a/0", "partly/a/0", "success/a/0")
    study = read_study([tmp_path])
    assert study.scores["stated"] == Score(RETURN, (-100.0, 0.0))
    assert study.scores["partly"] == Score(RETURN, (-200.0, 0.0))
    summary = summarize(study)
    assert summary.aggregate.mean is not None
    assert float(summary.aggregate.mean[0, 0]) == pytest.approx((0.5 + 0.725 + 0.8) / 3)
    text = make_page("", summary)
    _, stated, partly, _ = Page(text).tables
    assert "Score over all tasks." in text
    assert (stated[0][4], stated[1][1], stated[1][4]) == ("success rate", "-50.0", "0.500")
    assert "success rate" not in partly[0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("stated", [None, (0.0, 1000.0)])
def test_scale_is_that_of_the_environment_or_there_is_no_aggregate_and_the_page_says_why(
    stated: tuple[float, float] | None, tmp_path: Path
) -> None:
    make_comparison(tmp_path, {"walk": SCORES["walk"]}, return_range=stated)
    summary = summarize(read_study([tmp_path]))
    assert report(tmp_path).code == 0
    text = Page((tmp_path / "report.html").read_text()).text
    if stated is None:
        assert summary.aggregate.interquartile_mean is None
        assert "for want of a scale" in text
        assert "walk" in text
        assert "interquartile mean over tasks and runs" not in text
    else:
        assert summary.aggregate.interquartile_mean is not None
        assert summary.aggregate.interquartile_mean[:, 0].tolist() == pytest.approx([0.3, 0.5])
        assert "for want of a scale" not in text
    assert summary.aggregate.improvement is not None  # needs no scale


def test_scale_of_the_comparison_wins_over_that_of_the_environment(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [50.0]}}, {"swing": [-100.0, 100.0]}, return_range=(0.0, 1000.0))
    mean = summarize(read_study([tmp_path])).aggregate.mean
    assert mean is not None
    assert float(mean[0, 0]) == 0.75


def test_method_without_an_ended_run_on_a_task_is_left_out_of_the_aggregate(tmp_path: Path) -> None:
    scores = {"swing": {"a": [10.0], "b": [20.0], "c": [30.0]}, "walk": {"a": [100.0], "b": [200.0], "c": [None]}}
    make_comparison(tmp_path, scores, RANGES)  # pyright: ignore[reportArgumentType]
    summary = summarize(read_study([tmp_path]))
    assert summary.aggregate.interquartile_mean is not None
    assert summary.aggregate.interquartile_mean[:, 0].isnan().tolist() == [False, False, True]
    assert bool(summary.aggregate.interquartile_mean[:, 1:].isnan().all())  # a single run has no interval
    assert summary.aggregate.improvement is not None
    assert summary.aggregate.improvement[:2, :2, 0].nan_to_num(7.0).tolist() == [[7.0, 0.0], [1.0, 7.0]]
    assert bool(summary.aggregate.improvement[2].isnan().all())
    assert any("left out" in remark for remark in summary.remarks)
    assert report(tmp_path).code == 0


@pytest.mark.usefixtures("undrawn")
def test_runs_without_times_have_no_curve_by_seconds(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0]}}, timed=False)
    summary = summarize(read_study([tmp_path]))
    assert summary.tasks[0].methods[0].by_seconds is None
    assert math.isnan(summary.tables[0]["steps_per_s"][0])
    assert report(tmp_path).code == 0


def test_few_runs_and_several_versions_are_said(tmp_path: Path) -> None:
    make_comparison(tmp_path, {"swing": {"a": [10.0, 20.0]}})
    make_run(tmp_path / "swing" / "a" / "2", 30.0, commit="other")
    remarks = " ".join(summarize(read_study([tmp_path])).remarks)
    assert "as few as 3 runs" in remarks
    assert "2 versions of the code: abc, other" in remarks
    many = make_comparison(tmp_path / "many", {"swing": {"a": [10.0] * 5}}, RANGES)
    assert summarize(read_study([many])).remarks == ()


def test_precisions_and_processors_of_the_runs_are_said(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "0", 30.0, arithmetic="32-true on X (AVX2)")
    make_run(tmp_path / "a" / "1", 30.0, arithmetic="bf16-mixed on Y (AMX with BF16)")
    remarks = summarize(read_study([tmp_path])).remarks
    assert remarks[-1] == "Wall times are of 32-true on X (AVX2), bf16-mixed on Y (AMX with BF16)."


@pytest.mark.usefixtures("undrawn")
def test_report_repeats_itself(whole: Path, tmp_path: Path) -> None:
    assert report(whole, f"--output={tmp_path / 'again'}").code == 0
    first, second = ((folder / "report.html").read_text() for folder in (whole, tmp_path / "again"))
    assert Page(first).tables == Page(second).tables


@pytest.mark.usefixtures("undrawn")
def test_names_are_shown_as_they_are_written(tmp_path: Path) -> None:
    name = "a=1+<b>"
    make_comparison(tmp_path, {"swing": {name: [10.0], "b": [3.0]}}, RANGES)
    assert report(tmp_path).code == 0
    text = (tmp_path / "report.html").read_text()
    assert html.escape(name) in text
    assert name not in text


def test_names_that_look_like_mathematics_are_drawn(tmp_path: Path) -> None:
    make_comparison(tmp_path, {r"$\bad{$": {"$^$": [10.0, 9.0], "$_$": [3.0, 2.0]}}, {r"$\bad{$": [0.0, 10.0]})
    outcome = report(tmp_path)
    assert outcome.code == 0, outcome.err


def model(**settings: Any) -> str:
    init = {"observation_dim": 3, "temperature": 1.0} | settings
    return yaml.safe_dump({"seed_everything": 0, "model": {"class_path": "rooms.SomeModel", "init_args": init}})


@pytest.mark.usefixtures("undrawn")
def test_any_folder_of_runs_is_sorted_by_environment_and_by_what_differs_in_the_model(tmp_path: Path) -> None:
    for number, temperature in enumerate((1.0, 1.0, 0.5)):
        make_run(tmp_path / "Made-up-v0" / str(number), float(number))
        (tmp_path / "Made-up-v0" / str(number) / "config.yaml").write_text(model(temperature=temperature))
    make_run(tmp_path / "Other-v0" / "going-on", None)
    (tmp_path / "Other-v0" / "going-on" / "config.yaml").write_text(model(observation_dim=7))
    make_run(tmp_path / "flow", 1.0, head=",".join(names_of(LossPoint(0))))
    make_run(tmp_path / "nowhere", 1.0, head=OFFLINE)  # without an environment
    table = tmp_path / "nowhere" / "figures" / "learning_curve.csv"
    table.write_text(f"{OFFLINE}\n1,,,,,,2.0,\n")
    study = read_study([tmp_path])
    assert study.tasks == ("Made-up-v0", "Other-v0")
    assert study.methods == ("SomeModel temperature=1.0", "SomeModel temperature=0.5")
    assert [run.measured(RETURN) for run in study.of("Made-up-v0", study.methods[0])] == [0.0, 1.0]
    assert study.planned == {
        ("Made-up-v0", study.methods[0]): 2,
        ("Made-up-v0", study.methods[1]): 1,
        ("Other-v0", study.methods[0]): 1,
    }
    assert report(tmp_path, f"--output={tmp_path / 'page'}").code == 0


CURVE = "env_steps,return_mean\n10,1\n"
UNKNOWN = "data: {init_args: {environment: {class_path: nowhere.Made}}}"


@one_test
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no folder"),
        ({}, "nothing to report"),
        ({"runs/x/figures/learning_curve.csv": "env_steps,return_mean\n10,high\n"}, "learning_curve.csv is damaged"),
        ({"x/figures/learning_curve.csv": "env_steps,return_mean\n10,1\n", "x/result.json": "{"}, "result.json is dam"),
        ({"x/figures/learning_curve.csv": f"{CURVE}10,2\n"}, "learning_curve.csv is damaged: env_steps do not ascend"),
        ({"x/figures/learning_curve.csv": "\0\xff"}, "learning_curve.csv is damaged"),
        ({"x/figures/learning_curve.csv": CURVE, "x/result.json": "[]"}, "result.json is damaged"),
        ({"x/figures/learning_curve.csv": CURVE, "x/result.json": '{"return_range": [1]}'}, "return_range must be two"),
        *(
            ({"x/figures/learning_curve.csv": CURVE, "x/result.json": f'{{"return_range": {damaged}}}'}, words)
            for damaged, words in {
                "[null, 1]": "must be two numbers, got [None, 1]",
                '["a", 1]': "got ['a', 1]",
            }.items()
        ),
        ({"x/figures/learning_curve.csv": CURVE, "x/result.json": '{"metrics": {"test/return_mean": "1"}}'}, "'1'"),
        ({"x/figures/learning_curve.csv": CURVE, "x/config.yaml": "a: [1"}, "config.yaml is damaged"),
        ({"x/figures/learning_curve.csv": CURVE, "x/config.yaml": ""}, "config.yaml is damaged"),
        (
            {"x/figures/learning_curve.csv": CURVE, "x/config.yaml": UNKNOWN},
            "names the class 'nowhere.Made'",
        ),
        ({"comparison.json": "[]"}, "comparison.json is not the record"),
    ],
)
def test_folder_that_does_not_serve_is_refused_in_one_line(content, words, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="latin-1")
    outcome = report(folder)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert words in outcome.err


def test_aggregate_of_nothing_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="got neither"):
        draw_aggregate(Aggregate(["a"], "score", None, None, None, None))
