import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import pytest
import torch

from flowmatch_rl.batches import read_samples
from flowmatch_rl.callbacks.flow_figures import FlowFigures
from flowmatch_rl.evaluation import FlowSample, sample_flow
from flowmatch_rl.figures import draw_samples, flow_frames
from flowmatch_rl.models import Likelihood
from flowmatch_rl.modules import FlowMatchingModel
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.samplers import OdeSampler, SdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import AdaptiveSolver, Euler, Midpoint
from tests.callbacks.stand_ins import stand_in_trainer
from tests.callbacks.test_figures import is_drawn
from tests.combinations import one_test

ALWAYS = {"samples.png", "path.png", "trajectories.png", "steps.png"}
CLASSES = tuple("abcdefghijkl")


def table(dim: int, kind: str = "") -> TableSchema:
    numbers, classes = kind == "number", CLASSES if kind == "class" else ()
    return TableSchema(
        columns=tuple(f"column {i}" for i in range(dim)),
        shift=tuple(10.0 * i for i in range(dim)),
        scale=tuple(1.0 + i for i in range(dim)),
        condition_columns=("age",) * numbers,
        condition_shift=(40.0,) * numbers,
        condition_scale=(10.0,) * numbers,
        class_columns=("kind",) if classes else (),
        classes=(classes,) if classes else (),
    )


def tiny_flow(schema: TableSchema, **changes: Any) -> FlowMatchingModel:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "network": VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8),
        "likelihood": Likelihood(Midpoint(2)),
        "sampler": OdeSampler(Euler(6)),
    }
    return FlowMatchingModel(schema, **arguments | changes)


def held_out(schema: TableSchema, rows: int = 120) -> Any:
    generator = torch.Generator().manual_seed(0)
    batch = {"sample": torch.randn(rows, schema.sample_dim, generator=generator)}
    if schema.classes:
        kinds = torch.randint(len(CLASSES), (rows,), generator=generator)
        batch["condition"] = torch.nn.functional.one_hot(kinds, len(CLASSES)).float()
    elif schema.condition_columns:
        batch["condition"] = torch.randn(rows, 1, generator=generator)
    return batch


def figures(**changes: Any) -> FlowFigures:
    return FlowFigures(**{"num_samples": 100, "density_grid": 16, "video": "none"} | changes)


def draw(folder: Path, module: Any, batch: Any, callback: FlowFigures, **changes: Any) -> set[str]:
    """Names of the figures drawn, after a look at each."""
    callback.on_test_batch_end(stand_in_trainer(folder, **changes), module, None, batch, 0)
    paths = list((folder / "figures").glob("*"))
    assert all(is_drawn(path) for path in paths)
    return {path.name for path in paths}


@pytest.mark.parametrize(
    ("dim", "kind", "more"),
    [
        (2, "", {"field.png", "density.png"}),
        (2, "class", {"field.png"}),
        (1, "", set()),
        (1, "number", set()),
        (1, "class", set()),
        (5, "class", set()),
    ],
)
def test_tables_of_every_shape_are_drawn(tmp_path: Path, dim: int, kind: str, more: set[str]) -> None:
    schema = table(dim, kind)
    data = SimpleNamespace(label="some data")
    assert draw(tmp_path, tiny_flow(schema), held_out(schema), figures(), datamodule=data) == ALWAYS | more


@pytest.mark.parametrize(("dim", "kind"), [(1, "class"), (2, "number"), (3, "class")])
def test_names_with_dollars_are_drawn(tmp_path: Path, dim: int, kind: str) -> None:
    bad = r"$\bad{$"
    plain = table(dim, kind)
    schema = dataclasses.replace(
        plain,
        columns=tuple(f"{bad}{i}" for i in range(dim)),
        condition_columns=(bad,) * len(plain.condition_columns),
        class_columns=(bad,) * len(plain.class_columns),
        classes=tuple(tuple(f"$^{level}^$" for level in levels) for levels in plain.classes),
    )
    held, data = held_out(plain), SimpleNamespace(label="$_$")
    drawn = draw(tmp_path, tiny_flow(schema), held, figures(video="gif", max_side=64), datamodule=data)
    assert drawn == ALWAYS | ({"field.png"} if dim == 2 else set())
    assert (tmp_path / "videos" / "flow.gif").exists()


def test_a_solver_that_chooses_its_steps_has_no_figure_of_them(tmp_path: Path) -> None:
    module = tiny_flow(table(1), sampler=OdeSampler(AdaptiveSolver(rtol=0.1, atol=0.1)))
    assert draw(tmp_path, module, held_out(table(1)), figures()) == ALWAYS - {"steps.png"}


def test_a_model_that_has_diverged_and_a_few_rows_are_drawn(tmp_path: Path) -> None:
    module = tiny_flow(table(2))
    torch.nn.init.constant_(module.flow_ema.network.to_velocity.bias, float("nan"))
    figures().on_test_batch_end(stand_in_trainer(tmp_path), module, None, held_out(table(2), 3), 0)
    assert (tmp_path / "figures" / "density.png").exists()


def test_drawing_leaves_the_global_noise_alone(tmp_path: Path) -> None:
    module, before = tiny_flow(table(1), sampler=SdeSampler(4), t_min=0.01), torch.get_rng_state()
    figures(video="gif", max_side=64).on_test_batch_end(stand_in_trainer(tmp_path), module, None, held_out(table(1)), 0)
    assert (tmp_path / "videos" / "flow.gif").exists()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("callback", "changes"), [(figures(enabled=False), {}), (figures(), {"is_global_zero": False})]
)
def test_nothing_is_drawn_if_not_asked_or_by_another_process(tmp_path: Path, callback: Any, changes: Any) -> None:
    callback.on_test_batch_end(stand_in_trainer(tmp_path, **changes), tiny_flow(table(1)), None, held_out(table(1)), 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dim", [1, 2])
def test_the_video_runs_from_noise_to_data_and_rests_there(tmp_path: Path, dim: int) -> None:
    module, batch = tiny_flow(table(dim)), held_out(table(dim))
    sample = sample_flow(module.model, read_samples(batch), 100)
    frames = flow_frames(sample, "title", 5, 128)
    assert frames.shape[0] == 5
    assert 128 in frames.shape[1:3]
    assert all((frames[i] != frames[i + 1]).any() for i in range(4))
    draw(tmp_path, module, batch, figures(video="gif", max_side=96))
    path = tmp_path / "videos" / "flow.gif"
    with iio.imopen(path, "r", plugin="pillow") as file:
        number = file.properties(index=...).n_images
        assert number is not None
        durations = [file.metadata(index=i)["duration"] for i in range(number)]
    assert durations[-1] >= 1000
    assert max(durations[:-1]) <= 100
    assert max(iio.imread(path).shape[1:3]) == 96


def test_a_missing_encoder_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    draw(tmp_path, tiny_flow(table(1)), held_out(table(1)), figures(video="mp4"))
    assert caplog.text.count("imageio-ffmpeg") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]


@one_test
@pytest.mark.parametrize(
    ("name", "value"),
    [("num_samples", 1), ("density_grid", 7), ("density_seconds", 0.0), ("max_side", 63), ("video", "avi")],
)
def test_arguments_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        FlowFigures(**{name: value})


def test_points_outside_a_panel_are_counted() -> None:
    schema = table(2)
    sample = sample_flow(tiny_flow(schema).model, read_samples(held_out(schema, 2000)), 2000)
    generated = sample.generated.clone()
    generated[:3] = 1e4
    figure = draw_samples(FlowSample(**{**vars(sample), "generated": generated}), "title")
    titles = [axes.get_title() for part in figure.subfigs for axes in part.axes]
    assert any(title.startswith("2,000 samples, ") for title in titles)
