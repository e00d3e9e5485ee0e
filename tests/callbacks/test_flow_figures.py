from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch_rl.callbacks.flow_figures import FlowFigures
from flowmatch_rl.figures.flow import draw_samples
from flowmatch_rl.figures.flow_grids import density_on_grid, field_on_grid
from flowmatch_rl.figures.flow_sample import FlowSample, sample_flow, with_steps
from flowmatch_rl.figures.flow_steps import distance_by_steps
from flowmatch_rl.figures.frames import flow_frames
from flowmatch_rl.figures.view import group_rows, limits, limits_on_the_way, view_of
from flowmatch_rl.modules import FlowMatchingModel
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.samplers import OdeSampler, SdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import AdaptiveSolver, Euler, Midpoint
from tests.callbacks.stand_ins import stand_in_trainer
from tests.callbacks.test_figures import is_drawn

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
        "velocity": VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8),
        "likelihood_solver": Midpoint(2),
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


def test_a_solver_that_chooses_its_steps_has_no_figure_of_them(tmp_path: Path) -> None:
    module = tiny_flow(table(1), sampler=OdeSampler(AdaptiveSolver(rtol=0.1, atol=0.1)))
    assert draw(tmp_path, module, held_out(table(1)), figures()) == ALWAYS - {"steps.png"}


def test_a_model_that_has_diverged_and_a_few_rows_are_drawn(tmp_path: Path) -> None:
    module = tiny_flow(table(2))
    torch.nn.init.constant_(module.velocity_ema.to_velocity.bias, float("nan"))
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
    sample = sample_flow(tiny_flow(table(dim)), held_out(table(dim)), 100)
    frames = flow_frames(sample, "title", 5, 128)
    assert frames.shape[0] == 5
    assert 128 in frames.shape[1:3]
    assert all((frames[i] != frames[i + 1]).any() for i in range(4))
    figures(video="gif", max_side=96)._film(stand_in_trainer(tmp_path), sample, "title")
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
    sample: Any = None
    figures(video="mp4")._film(stand_in_trainer(tmp_path), sample, "title")
    assert "imageio-ffmpeg" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_samples", 1), ("density_grid", 7), ("density_seconds", 0.0), ("max_side", 63), ("video", "avi")],
)
def test_arguments_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        FlowFigures(**{name: value})


def exact_gaussian(scale: float = 0.5) -> Any:
    """A module of the law N(0, scale^2) per standardised column, whose field and density are known."""
    schema = TableSchema(("x", "y"), (3.0, -1.0), (2.0, 4.0))
    rate = float(np.log(scale))

    def log_prob(x: Tensor, *_: object) -> Tensor:
        return -0.5 * (x / scale).square().sum(1) - float(np.log(2.0 * np.pi * scale**2)) - schema.log_volume

    def trajectory(noise: Tensor, sampler: object, *_: object) -> tuple[Tensor, Tensor]:
        t = torch.linspace(0.0, 1.0, 11)
        return t, torch.exp(rate * t)[:, None, None] * noise

    return SimpleNamespace(
        schema=schema,
        sampler=OdeSampler(Euler(10)),
        guidance=1.0,
        draw_noise=lambda number, generator: torch.randn(number, 2, generator=generator),
        sample=lambda noise, *_: scale * noise,
        log_prob=log_prob,
        flow=SimpleNamespace(
            trajectory=trajectory, field=lambda guidance: SimpleNamespace(velocity=lambda x, t, condition: rate * x)
        ),
    )


def sampled_gaussian() -> FlowSample:
    return sample_flow(exact_gaussian(), {"sample": 0.5 * torch.randn(2000, 2)}, 2000)


def test_the_density_is_that_of_the_model_and_sums_to_one() -> None:
    grid = density_on_grid(exact_gaussian(), sampled_gaussian(), grid=41, seconds=10.0)
    assert grid.density.shape == (41, 41)
    assert grid.mass == pytest.approx(1.0, abs=0.02)
    steps = (grid.frame[1] - grid.frame[0]) / 41
    centres = [grid.frame[0, i] + (np.arange(41) + 0.5) * steps[i] for i in (0, 1)]
    squares = ((centres[0] - 3.0) / 1.0)[None] ** 2 + ((centres[1] + 1.0) / 2.0)[:, None] ** 2
    exact = np.exp(-0.5 * squares) / (4.0 * np.pi)
    computed = grid.density > 0.0
    np.testing.assert_allclose(grid.density[computed], exact[computed], rtol=1e-4)
    assert exact[~computed].max() < 0.02 * exact.max()


def test_a_density_that_costs_too_much_has_fewer_cells() -> None:
    assert density_on_grid(exact_gaussian(), sampled_gaussian(), grid=96, seconds=1e-9).density.shape == (16, 16)


def test_the_field_is_in_units_of_the_data_and_its_speed_in_standard_deviations() -> None:
    field = field_on_grid(exact_gaussian(), None, np.zeros((1, 2)), number=3)
    np.testing.assert_allclose(field.t, [0.0, 0.5, 1.0], atol=1e-6)
    rate = np.log(0.5)
    x, y = field.x[:, None, :] - 3.0, field.y[:, :, None] + 1.0
    np.testing.assert_allclose(field.velocity[..., 0], np.broadcast_to(rate * x, field.speed.shape), rtol=1e-4)
    np.testing.assert_allclose(field.velocity[..., 1], np.broadcast_to(rate * y, field.speed.shape), rtol=1e-4)
    np.testing.assert_allclose(field.speed, -rate * np.hypot(x / 2.0, y / 4.0), rtol=1e-4)


def test_straight_ways_are_as_long_as_their_distance_and_detours_longer() -> None:
    sample = sampled_gaussian()
    assert sample.straightness == pytest.approx(1.0, abs=1e-4)
    there_and_back = torch.tensor([0.0, 3.0, 1.0])[:, None, None].expand(3, 5, 2)
    assert FlowSample(**{**vars(sample), "points": there_and_back}).straightness == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("sampler", "per_step"), [(OdeSampler(Euler(3)), 1), (OdeSampler(Midpoint(3)), 2), (SdeSampler(3), 1)]
)
def test_network_evaluations_are_counted_per_sample(sampler: Any, per_step: int) -> None:
    module = tiny_flow(table(2, "number"), sampler=sampler, t_min=0.01)
    errors = distance_by_steps(module, held_out(table(2, "number")), 20)
    assert errors is not None
    assert errors.evaluations.tolist() == [per_step * steps for steps in errors.steps]
    assert errors.evaluations[-1] == 64
    assert errors.configured == 3 * per_step
    assert np.isfinite(errors.distance).all()


def test_more_steps_come_closer_to_the_data() -> None:
    """The field of a path to a point mass, whose samples are exact only after many steps of a rough solver."""
    module = tiny_flow(table(1))
    generator = torch.Generator().manual_seed(0)
    fine = with_steps(module.sampler, 512)
    noise = torch.randn(400, 1, generator=generator)
    for parameter in module.velocity_ema.parameters():
        parameter.mul_(1.5)
    data = module.flow.sample(noise, fine, None, 1.0)
    errors = distance_by_steps(module, {"sample": data}, 200)
    assert errors is not None
    assert errors.distance[0] > 3.0 * errors.distance[-1]
    assert errors.distance[-1] < 2.0 * errors.noise


def test_the_number_of_steps_is_that_of_the_sampler_or_of_its_solver() -> None:
    assert with_steps(OdeSampler(Midpoint(3)), 7) == OdeSampler(Midpoint(7))
    assert with_steps(SdeSampler(3, noise_scale=0.5), 7) == SdeSampler(7, noise_scale=0.5)
    assert with_steps(OdeSampler(AdaptiveSolver()), 7) is None


def test_two_columns_are_shown_in_their_units_and_more_by_principal_components() -> None:
    schema = TableSchema(("x", "y"), (3.0, -1.0), (2.0, 4.0))
    data = torch.randn(50, 2)
    np.testing.assert_allclose(view_of(schema, data).show(data), schema.restore(data).numpy())
    line = torch.randn(200, 1) * torch.tensor([[0.0, -2.0, 0.0]]) + 0.01 * torch.randn(200, 3) + 5.0
    view = view_of(table(3), line)
    shown = view.show(line)
    np.testing.assert_allclose(shown.mean(0), [0.0, 0.0], atol=1e-5)
    np.testing.assert_allclose(shown[:, 0], (line - line.mean(0))[:, 1].numpy(), atol=0.1)
    assert view.labels[0] == "PC 1 (100 % of variance)"


def test_the_rarest_of_many_classes_share_a_colour() -> None:
    counts = [9, 1, 8, 7, 2, 6, 5, 4, 3, 1, 1, 10]
    kinds = torch.arange(12).repeat_interleave(torch.tensor(counts))
    groups = group_rows(table(1, "class"), torch.nn.functional.one_hot(kinds, 12).float())
    assert groups.levels == ("a", "c", "d", "f", "g", "h", "l", "others")
    assert [groups.levels[i] for i in groups.values] == [
        CLASSES[k] if CLASSES[k] in groups.levels else "others" for k in kinds
    ]


def test_limits_hold_the_cloud_but_for_its_outermost_points() -> None:
    cloud = np.concatenate([np.random.default_rng(0).uniform(-1.0, 1.0, (1000, 2)), [[1e6, 0.0], [np.nan, 0.0]]])
    low, high = limits(cloud)
    assert (np.abs(low + 1.2) < 0.05).all()
    assert (np.abs(high - 1.2) < 0.05).all()
    assert np.isfinite(limits(np.full((3, 2), np.nan))).all()
    assert (np.diff(limits(np.full((3, 1), 7.0)), axis=0) > 0.0).all()


def test_a_cloud_that_shrinks_much_is_followed_and_another_is_not() -> None:
    cloud = np.random.default_rng(0).normal(size=(100, 2))
    last = limits(cloud)
    still = limits_on_the_way(np.stack([2.0 * cloud, cloud]), last)
    np.testing.assert_array_equal(still[0], still[1])
    moving = limits_on_the_way(np.stack([80.0 * cloud, cloud]), last)
    assert (moving[0, 1] > 50.0 * moving[1, 1]).all()


def test_points_outside_a_panel_are_counted() -> None:
    sample = sampled_gaussian()
    generated = sample.generated.clone()
    generated[:3] = 1e4
    figure = draw_samples(FlowSample(**{**vars(sample), "generated": generated}), "title")
    titles = [axes.get_title() for part in figure.subfigs for axes in part.axes]
    assert any(title.startswith("2,000 samples, ") for title in titles)
