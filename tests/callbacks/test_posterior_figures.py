"""The figure of what a policy learns from by flow time."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn, TrainerState
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from flowmatch_rl.callbacks.posterior_figures import PosteriorFigures
from flowmatch_rl.evaluation import PosteriorProfile
from flowmatch_rl.figures import draw_posterior
from flowmatch_rl.figures.style import BLUE
from flowmatch_rl.modules import SoftActorCritic
from tests.callbacks.stand_ins import stand_in_trainer, tiny_data, tiny_module, tiny_trainer
from tests.callbacks.test_figures import Breaks, is_drawn

T = [0.125, 0.375, 0.625, 0.875]
DATA = SimpleNamespace(label="some data")


def profile(step: int, **means: list[float]) -> PosteriorProfile:
    return PosteriorProfile(
        step, T, dict(means) or {"eta": [0.0, 0.1, 0.5, step / 100], "saturated": [0.5, 0.2, 0.1, 0.0]}
    )


def module(step: int | None) -> Any:
    return SimpleNamespace(posterior_profile=None if step is None else profile(step))


def steps(figures: PosteriorFigures) -> list[int]:
    return [known["step"] for known in figures.state_dict()["profiles"]]


def file_of(folder: Path) -> Path:
    return folder / "figures" / "posterior.png"


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


class SavesAtEvaluations(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)


def test_a_training_leaves_its_figure_and_a_resumed_one_keeps_what_was_before(tmp_path: Path) -> None:
    checkpoint, figures = tmp_path / "first.ckpt", PosteriorFigures()
    trainer = tiny_trainer(tmp_path, [figures, SavesAtEvaluations(checkpoint)], max_epochs=1)
    trainer.fit(tiny_module(), datamodule=tiny_data())
    assert is_drawn(file_of(tmp_path))
    again = PosteriorFigures()
    trainer = tiny_trainer(tmp_path, [again], max_epochs=2)
    trainer.fit(tiny_module(), datamodule=tiny_data(), ckpt_path=checkpoint, weights_only=False)
    assert steps(figures) == [30]
    assert steps(again) == [30, 40]
    assert str(again.state_dict()["profiles"][0]) == str(figures.state_dict()["profiles"][0])  # NaN is not itself


def test_a_run_that_breaks_off_leaves_its_figure(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [PosteriorFigures(), Breaks()], max_epochs=2)
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.fit(tiny_module(), datamodule=tiny_data())
    assert is_drawn(file_of(tmp_path))


def test_a_module_without_profile_leaves_nothing(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, [PosteriorFigures()], max_epochs=1)
    trainer.fit(SoftActorCritic(3, 1), datamodule=tiny_data())
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_made_no_update_leaves_nothing(tmp_path: Path) -> None:
    figures, trainer = PosteriorFigures(), stand_in_trainer(tmp_path, datamodule=DATA)
    figures.on_validation_end(trainer, module(None))
    figures.on_fit_end(trainer, module(None))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_other_processes_and_trials_write_nothing(tmp_path: Path, changes: Any) -> None:
    figures, trainer = PosteriorFigures(), stand_in_trainer(tmp_path, datamodule=DATA, **changes)
    figures.on_validation_end(trainer, module(1))
    figures.on_fit_end(trainer, module(1))
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_breaks_off_writes_nothing(tmp_path: Path) -> None:
    trainer = stand_in_trainer(tmp_path, datamodule=DATA, state=TrainerState(fn=TrainerFn.TESTING))
    PosteriorFigures().on_exception(trainer, module(1), RuntimeError())
    assert list(tmp_path.iterdir()) == []


def test_a_profile_is_kept_once_and_replaces_those_of_later_steps(tmp_path: Path) -> None:
    figures, trainer, first = PosteriorFigures(), stand_in_trainer(tmp_path), module(10)
    for hook in (figures.on_validation_end, figures.on_train_epoch_start, figures.on_train_end):
        hook(trainer, first)
    assert steps(figures) == [10]
    for step in (20, 30, 20):
        figures.on_validation_end(trainer, module(step))
    assert steps(figures) == [10, 20]


def test_the_state_loads_without_pickled_classes(tmp_path: Path) -> None:
    figures, again = PosteriorFigures(), PosteriorFigures()
    figures.on_validation_end(stand_in_trainer(tmp_path), module(10))
    torch.save(figures.state_dict(), tmp_path / "state")
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert again.state_dict() == figures.state_dict()
    assert again.state_dict()["profiles"][0]["means"]["eta"] == [0.0, 0.1, 0.5, 0.1]


def test_the_last_stretch_is_drawn_in_full_colour_and_earlier_ones_fade() -> None:
    figure = draw_posterior([profile(step) for step in (10, 20, 30)], "title")
    assert set(panels(figure)) == {"control variate", "endpoints at a bound"}
    lines = panels(figure)["control variate"].lines
    assert [line.get_ydata()[-1] for line in lines] == [0.1, 0.2, 0.3]
    assert all(list(line.get_xdata()) == T for line in lines)
    assert to_hex(lines[-1].get_color()) == to_hex(BLUE)
    darkness = [1.0 - np.mean(to_rgb(line.get_color())) for line in lines]
    assert darkness == sorted(set(darkness))
    legend: Any = figure.axes[2].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["until 30", "until 20", "until 10"]


def test_of_a_long_training_the_first_and_the_last_stretch_are_among_those_drawn() -> None:
    figure = draw_posterior([profile(step) for step in range(1, 101)], "title")
    ends = [line.get_ydata()[-1] for line in panels(figure)["control variate"].lines]
    assert len(ends) == 8
    assert (ends[0], ends[-1]) == (0.01, 1.0)
    assert np.diff(ends) == pytest.approx(0.99 / 7, abs=0.011)


@pytest.mark.parametrize(
    ("values", "scale"),
    [([1.0, 20.0, 3.0, math.nan], "log"), ([1.0, 2.0, 3.0, 4.0], "linear"), ([0.0, 0.0, 90.0, 1.0], "linear")],
)
def test_a_scale_that_spans_decades_is_logarithmic(values: list[float], scale: str) -> None:
    (axes,) = panels(draw_posterior([profile(1, target_rms=values)], "title")).values()
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low <= np.nanmin(values) < np.nanmax(values) < high


def test_a_quantity_that_appears_late_or_has_no_name_of_its_own_is_drawn() -> None:
    figure = draw_posterior([profile(1), profile(2, eta=[0.0] * 4, novel=[1.0] * 4)], "title")
    assert [len(panels(figure)[title].lines) for title in ("control variate", "endpoints at a bound", "novel")] == [
        2,
        1,
        1,
    ]


@pytest.mark.parametrize("number", [1, 3, 4, 5, 6])
def test_the_lowest_panel_of_each_column_names_its_axis(number: int) -> None:
    figure = draw_posterior([profile(1, **{f"quantity {index}": [1.0] * 4 for index in range(number)})], "title")
    assert len(panels(figure)) == number
    for index, axes in enumerate(panels(figure).values()):
        assert axes.get_xlabel() == ("flow time" if index + 3 >= number else "")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one profile, got none"):
        draw_posterior([], "title")
