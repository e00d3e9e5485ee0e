"""How far transitions are expanded, as a figure and a table."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flowmatch_rl.callbacks import ExpansionCurve
from flowmatch_rl.evaluation import ExpansionPoint, ExpansionSample
from flowmatch_rl.figures import draw_expansion, plane_among
from flowmatch_rl.schema import TableSchema
from tests.callbacks.stand_ins import stand_in_trainer
from tests.callbacks.test_figures import is_drawn

MODULE: Any = None
POINTS = [ExpansionPoint(10, 0.5, 3.0), ExpansionPoint(2_000, 0.9, 7.5)]
WALLS = torch.tensor([[0.0, -2.0, 0.2, 0.0]])


def expansions(*columns: str, number: int = 400) -> ExpansionSample:
    """Drawn to 4 or 8 steps; those from a positive first entry end after 3, a fifth of them in a terminal state."""
    start = torch.randn(number, len(columns), generator=torch.Generator().manual_seed(0))
    wanted = torch.full((number,), 8)
    wanted[::2] = 4
    stopped = start[:, 0] > 0.0
    schema = TableSchema(columns, (0.0,) * len(columns), (2.0,) * len(columns))
    return ExpansionSample(
        schema, start, torch.where(stopped, 3, wanted), wanted, stopped & (torch.arange(number) % 5 == 0)
    )


def trainer_with(folder: Path, sample: ExpansionSample | None, step: int = 10) -> Any:
    return stand_in_trainer(
        folder,
        datamodule=SimpleNamespace(label="ma$z$e", walls=WALLS),
        lightning_module=SimpleNamespace(expansions=sample),
        global_step=step,
    )


def test_early_are_expansions_that_end_before_their_length_and_not_in_a_terminal_state() -> None:
    schema = TableSchema(("a",), (0.0,), (1.0,))
    length, wanted, ended = torch.tensor([4, 3, 3, 1]), torch.tensor([4, 4, 4, 1]), torch.tensor([0, 0, 1, 0]).bool()
    sample = ExpansionSample(schema, torch.zeros(4, 1), length, wanted, ended)
    assert sample.early.tolist() == [False, True, False, False]
    reached, drawn = sample.survival()
    assert reached.tolist() == [1.0, 0.75, 0.75, 0.25]
    assert drawn.tolist() == [1.0, 0.75, 0.75, 0.75]
    # The mean length is the sum of the fractions that have at least as many steps.
    assert float(reached.sum()) == sample.mean_length == 11 / 4
    assert sample.full_fraction == 0.75


def test_a_run_that_expands_leaves_a_figure_and_a_table(tmp_path: Path) -> None:
    curve, trainer = ExpansionCurve(), None
    whole = expansions("x", "y")
    for step, sample in ((10, whole), (20, dataclasses.replace(whole, length=whole.wanted))):
        trainer = trainer_with(tmp_path, sample, step)
        curve.on_validation_end(trainer, MODULE)
    curve.on_fit_end(trainer, MODULE)
    table = (tmp_path / "figures" / "expansion.csv").read_text().splitlines()
    first = f"10,{whole.full_fraction},{whole.mean_length}"
    assert table == ["gradient_steps,full_expansions,expansion_length", first, "20,1.0,6.0"]
    assert is_drawn(tmp_path / "figures" / "expansion.png")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"expansion.csv", "expansion.png"}
    again = ExpansionCurve()
    again.load_state_dict(curve.state_dict())
    again.on_fit_end(trainer_with(tmp_path / "resumed", None), MODULE)  # broken off before its first expansion
    assert is_drawn(tmp_path / "resumed" / "figures" / "expansion.png")


def test_a_run_without_expansion_leaves_nothing(tmp_path: Path) -> None:
    curve, trainer = ExpansionCurve(), trainer_with(tmp_path, None)
    curve.on_validation_end(trainer, MODULE)
    curve.on_fit_end(trainer, MODULE)
    assert list(tmp_path.iterdir()) == []


def test_lengths_are_drawn_beside_those_wanted() -> None:
    sample = expansions("a", "b", "c")
    full, mean, lengths, _ = draw_expansion(POINTS, sample, None, "t").axes
    assert np.asarray(full.lines[0].get_ydata()).tolist() == [0.5, 0.9]
    assert np.asarray(mean.lines[0].get_ydata()).tolist() == [3.0, 7.5]
    drawn, reached = (np.asarray(line.get_ydata()) for line in lengths.lines)
    assert drawn.tolist() == [1.0] * 4 + [0.5] * 4
    np.testing.assert_allclose(reached, sample.survival()[0])
    assert "the last 400 expansions" in lengths.get_title()


def test_the_map_shows_from_where_expansions_end_early() -> None:
    sample = expansions("x", "y", number=20_000)
    panel = draw_expansion(POINTS, sample, plane_among(sample.schema, (0, 1), WALLS), "t").axes[3]
    (mesh,) = panel.collections
    cells: Any = mesh.get_array()
    fractions = cells.reshape(25, 25)
    edges = np.linspace(*panel.get_xlim(), 26)
    left, right = fractions[:, edges[1:] < 0.0], fractions[:, edges[:-1] > 0.0]
    assert float(left.max()) == 0.0
    assert float(right.mean()) == pytest.approx(0.8, abs=0.1)
    assert len(panel.patches) == 2 * len(WALLS)


def test_states_that_are_no_position_are_compared_entry_by_entry() -> None:
    names = tuple("abcdefghijklmn")
    sample = expansions(*names)
    sample.start[:, [3, 10]] = 0.0
    panel = draw_expansion(POINTS, sample, None, "t").axes[3]
    assert [label.get_text() for label in panel.get_yticklabels()] == [name for name in names if name not in "dk"]
    assert "the 12 of 14 entries that differ most" in panel.get_title()
    kept, ended = (np.asarray(container[0].get_xdata()) for container in panel.containers)
    assert ended[0] == pytest.approx(0.4, abs=0.05)  # E max(Z, 0) / P(Z > 0) / 2 = .4
    assert kept[0] < 0.0
    assert abs(kept[1] - ended[1]) < 0.15


@pytest.mark.parametrize("early", [False, True])
def test_all_or_none_may_end_early(early: bool, tmp_path: Path) -> None:
    start, wanted = torch.zeros(5, 3), torch.full((5,), 4)
    sample = ExpansionSample(
        TableSchema(tuple("abc"), (0.0,) * 3, (1.0,) * 3),
        start,
        torch.ones(5, dtype=torch.long) if early else wanted,
        wanted,
        torch.zeros(5, dtype=torch.bool),
    )
    figure = draw_expansion(POINTS[:1], sample, None, "t")
    figure.savefig(tmp_path / "one.png")
    assert len(figure.axes[3].containers) == 1
