"""What the figures of future states show, and that they are drawn."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts, read_rollouts
from flowmatch_rl.callbacks import OccupancyFigures
from flowmatch_rl.data import OfflineData
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.evaluation import FutureSample, sample_futures, sample_values
from flowmatch_rl.evaluation.futures import observed_fraction
from flowmatch_rl.evaluation.view import view_of
from flowmatch_rl.figures import draw_future_marginals, draw_future_states, draw_values, plane_of
from flowmatch_rl.figures.occupancy_parts import frame_around
from flowmatch_rl.figures.occupancy_plane import Plane, fractions
from flowmatch_rl.models import Horizon
from flowmatch_rl.objectives import FirstState
from flowmatch_rl.planning import estimate_value, monte_carlo_value
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy, LinearReward, PointMassMaze
from tests.callbacks.stand_ins import stand_in_trainer
from tests.callbacks.test_figures import is_drawn
from tests.data.toy_trajectories import trajectory_store
from tests.modules.occupancy_toys import ExactCycle, cycle_rollouts, occupancy
from tests.oracles import F64

NEVER = LinearReward(columns=("time",), weights=(0.3,), bias=2.0)
WALLS = torch.tensor([[-1.0, -0.1, 1.0, 0.1]], dtype=F64)


def table(*columns: str) -> TableSchema:
    return TableSchema(columns, tuple(float(i) for i in range(len(columns))), (1.5,) * len(columns))


def model(schema: TableSchema, **options: Any) -> Any:
    policy = LinearPolicy(gain=[[0.1] * schema.sample_dim])
    return occupancy(schema, 1, **({"policy": policy} | options))


def batch(dim: int, trajectories: bool = True, copies: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {
        "observation": torch.randn(5, dim, generator=generator),
        "action": torch.zeros(5, 1),
        "embedding": torch.empty(5, 0),
    }
    if trajectories:
        made["states"] = torch.randn(5, copies, 80, dim, generator=generator)
        made["length"] = torch.full((5, copies), 80)
        made["ended"] = torch.zeros(5, copies, 80, dtype=torch.bool)
    return made


def draw(folder: Path, module: Any, held: dict[str, Tensor], walls: Tensor | None = None, **changes: Any) -> set[str]:
    """Names of the figures drawn, after a look at each."""
    trainer = stand_in_trainer(folder, **{"datamodule": SimpleNamespace(label="se$t$", walls=walls)} | changes)
    OccupancyFigures(num_samples=60, value_samples=20).on_test_batch_end(trainer, module, None, held, 0)
    paths = list((folder / "figures").glob("*"))
    assert all(is_drawn(path) for path in paths)
    return {path.name for path in paths}


def future_sample(columns: tuple[str, ...], real: bool = True, observed: float = 1.0) -> FutureSample:
    points = torch.randn(2, 3, 50, len(columns), generator=torch.Generator().manual_seed(0))
    entries, held = tuple(range(len(columns))), (1.0, observed)
    return FutureSample(table(*columns), entries, points[0, :, 0], (0.5, 0.9), points, points if real else None, held)


def ending_rollouts() -> Rollouts:
    """A trajectory that never ends, one that is cut after 3 steps, one that ends after 2."""
    states = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 5.0, 6.0, 6.0], [7.0, -8.0, -8.0, -8.0]], dtype=F64)[
        :, None, :, None
    ]
    ended = torch.zeros(3, 1, 4, dtype=torch.bool)
    ended[2, :, 1:] = True
    source = torch.zeros(3, 1, dtype=F64)
    return Rollouts(source, source, torch.empty(3, 0), states, torch.tensor([[4], [3], [4]]), ended)


def test_axes_show_the_units_of_their_columns() -> None:
    sample = future_sample(("x", "y"))
    sample = dataclasses.replace(sample, schema=dataclasses.replace(sample.schema, units=("m", "")))
    figure = draw_future_marginals(sample, "t")
    labels = [axes.get_xlabel() for part in figure.subfigs for axes in part.axes]
    assert labels[:2] == ["x [m]", "y"]
    plane = plane_of(sample, None)
    assert plane is not None
    assert plane.labels == ("x [m]", "y")
    assert view_of(sample.schema, sample.source).labels == ("x [m]", "y")


@pytest.mark.parametrize("discount", [0.0, 0.4, 0.95])
def test_what_roll_outs_hold_is_what_is_not_missing_from_their_value(discount: float) -> None:
    rollouts = ending_rollouts()
    assert rollouts.states is not None
    assert rollouts.ended is not None
    earned, ended = rollouts.states[..., 0].movedim(-1, 0), rollouts.ended.movedim(-1, 0)
    missing = (1.0 - discount) * monte_carlo_value(earned, ended, discount, rollouts.length).missing_weight[:, 0]
    for row, lost in enumerate(missing):
        one = Rollouts(*(None if part is None else part[row : row + 1] for part in vars(rollouts).values()))
        assert observed_fraction(one, discount) == pytest.approx(1.0 - float(lost))
    assert observed_fraction(rollouts, discount) == pytest.approx(1.0 - float(missing.max()))


def test_states_alone_miss_nothing() -> None:
    assert observed_fraction(Rollouts(*torch.zeros(3, 2, 1), None, None, None), 0.5) == 1.0


@pytest.mark.parametrize("first_state", ["arrival", "current"])
def test_real_states_are_found_at_geometric_times(first_state: FirstState) -> None:
    module = ExactCycle(first_state, discount=0.8)
    sample = sample_futures(module, cycle_rollouts([0, 400], 300, copies=2), 2, 20_000)
    assert sample.real is not None
    assert sample.discounts[-1] == 0.8
    for group, discount in enumerate(sample.discounts):
        times = (sample.real[group] - sample.source[:, None])[..., 0]
        first = 1.0 if first_state == "arrival" else 0.0
        assert float(times.min()) == first
        for i in range(4):
            share = float((times == first + i).double().mean())
            assert share == pytest.approx((1.0 - discount) * discount**i, abs=4.0 * 0.5 / 40_000**0.5)
    # The model's are found there by construction, so that both clouds tell the same.
    torch.testing.assert_close(sample.real.mean(2), sample.modelled.mean(2), atol=0.2, rtol=0.0)


def test_discounts_are_even_in_the_logarithm_of_the_horizon() -> None:
    sample = sample_futures(model(table("a", "b"), horizon=Horizon(0.99, 0.2)).model, read_rollouts(batch(2)), 1, 4)
    assert (sample.discounts[0], sample.discounts[-1]) == (0.2, 0.99)
    logs = torch.tensor(sample.discounts, dtype=F64).neg().log1p()
    torch.testing.assert_close(logs.diff(), logs.diff().mean().expand(3))
    single = sample_futures(model(table("a", "b"), horizon=Horizon(0.7, 0.7)).model, read_rollouts(batch(2)), 1, 4)
    assert single.discounts == (0.7,)


def test_samples_leave_the_global_noise_alone_and_repeat() -> None:
    module, rollouts, rewards = (
        model(table("a", "b")).model,
        read_rollouts(batch(2)),
        {"r": LinearReward(("a",), (1.0,))},
    )
    before = torch.get_rng_state()
    first, values = sample_futures(module, rollouts, 3, 10), sample_values(module, rollouts, rewards, 10)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    again = sample_futures(module, rollouts, 3, 10)
    assert torch.equal(first.modelled, again.modelled)
    assert first.real is not None
    assert again.real is not None
    assert torch.equal(first.real, again.real)
    assert torch.equal(values[0].value, sample_values(module, rollouts, rewards, 10)[0].value)


@pytest.mark.parametrize("first_state", ["arrival", "current"])
def test_values_are_those_of_a_test(first_state: FirstState) -> None:
    module = ExactCycle(first_state, discount=0.8, columns=["time"])
    rollouts = cycle_rollouts([3, 10, 200], 120, copies=4)
    (value,) = sample_values(module, rollouts, {"never": NEVER}, 500)
    noise = module.draw_noise(3, 500, generator=torch.Generator().manual_seed(1))
    source = [part[:, None] for part in (rollouts.observation, rollouts.action, rollouts.embedding)]
    now = rollouts.observation[:, :1] if first_state == "current" else None
    futures = module.sample(noise, *source, discount=0.8)
    wanted = estimate_value(futures, lambda states: NEVER.evaluate(states, ("time",)), 0.8, now)
    torch.testing.assert_close(value.value, wanted.value, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(value.standard_error, wanted.standard_error, rtol=1e-4, atol=0.0)
    # By the closed form sum_k 0.8^k (2 + 0.3 (s + k + 1)), without spread, for all trajectories are alike.
    exact = 5.0 * (2.0 + 0.3 * (torch.tensor([3.0, 10.0, 200.0], dtype=F64) + 5.0))
    torch.testing.assert_close(value.real, exact.float(), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(value.real_error, torch.zeros(3), rtol=0.0, atol=1e-4)
    assert ((value.value - exact).abs() < 5.0 * value.standard_error).all()


def test_a_single_roll_out_has_no_standard_error() -> None:
    (value,) = sample_values(ExactCycle(), cycle_rollouts([3], 50), {"never": NEVER}, 10)
    assert value.real is not None
    assert value.real_error is None


@pytest.mark.parametrize(
    ("columns", "modelled", "walls", "wanted"),
    [
        (("a", "b", "c"), [0, 1, 2], None, None),
        (("a", "b", "c"), [0, 1, 2], WALLS, (0, 1)),
        (("b", "a"), [1, 0], WALLS, (1, 0)),
        (("vx", "x", "y"), [2, 0, 1], None, (1, 2)),
        (("a", "b"), [0, 1], None, (0, 1)),
        (("vx", "vy"), [2, 3], WALLS, (0, 1)),
        (("vx",), [2], WALLS, None),
    ],
)
def test_the_plane_is_that_of_the_walls_or_of_x_and_y(
    columns: tuple[str, ...], modelled: list[int], walls: Tensor | None, wanted: tuple[int, int] | None
) -> None:
    sample = dataclasses.replace(future_sample(columns), modelled_entries=tuple(modelled))
    plane = plane_of(sample, walls)
    assert (None if plane is None else plane.entries) == wanted
    if plane is not None:  # walls are drawn where the state's first two entries are, and nowhere else
        assert len(plane.walls) == (1 if walls is not None and {0, 1} <= set(modelled) else 0)


def test_limits_hold_what_is_known_and_what_is_modelled_near_it() -> None:
    known, near, far = np.array([[0.0, 0.0], [1.0, 4.0]]), np.array([[-0.1, 5.0]]), np.array([[900.0, -900.0]])
    scale = np.array([0.2, 0.2])

    def held(frame: np.ndarray, points: np.ndarray) -> bool:
        return bool(((points >= frame[0]) & (points <= frame[1])).all())

    assert held(frame_around([known], [near], scale), np.concatenate([known, near]))
    frame = frame_around([known], [far], scale)
    assert held(frame, known)
    assert (frame[1] - frame[0] < 3.0 * np.array([1.0, 4.0])).all()
    assert held(frame_around([], [far, near], scale), far)


def test_fractions_count_what_lies_outside() -> None:
    frame = np.array([[0.0, 0.0], [1.0, 2.0]])
    points = np.array([[0.1, 0.1], [0.1, 0.1], [0.9, 1.9], [3.0, 1.0], [np.nan, 0.5]])
    found = fractions(points, frame)
    assert found.sum() == pytest.approx(0.6)
    assert found[: len(found) // 2, : len(found) // 2].max() == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (("a",), {"future_marginals.png", "values.png"}),
        (("a", "b"), {"future_states.png", "values.png"}),
        (("a", "x", "y"), {"future_states.png", "future_marginals.png", "values.png"}),
        (tuple("abcdefghijklmn"), {"future_marginals.png", "values.png"}),
    ],
    ids=lambda part: str(len(part)),
)
def test_all_figures_are_drawn(tmp_path: Path, columns: tuple[str, ...], wanted: set[str]) -> None:
    rewards = {name: LinearReward(("a",), (1.0,)) for name in ("near", "fa$r$", "up", "down")}
    horizon = Horizon(0.9, 0.5 if len(columns) == 2 else None)
    module = model(table(*columns), horizon=horizon, rewards=rewards)
    assert draw(tmp_path, module, batch(len(columns))) == wanted


def test_walls_of_the_data_are_drawn(tmp_path: Path) -> None:
    names = draw(tmp_path, model(table("a", "b", "c")), batch(3), WALLS)
    assert names == {"future_states.png", "future_marginals.png"}


def test_without_trajectories_only_the_model_is_drawn(tmp_path: Path) -> None:
    module = model(table("x", "y", "z"), rewards={"r": LinearReward(("x",), (1.0,))})
    assert draw(tmp_path, module, batch(3, trajectories=False)) == {"future_states.png", "future_marginals.png"}
    plane = Plane((0, 1), ("x", "y"), np.empty((0, 4)))
    titles = [axes.get_title() for axes in draw_future_states(future_sample(("x", "y"), real=False), plane, "t").axes]
    assert sum("modelled" in title for title in titles) == 6
    assert not any("real" in title for title in titles)


def test_every_discount_has_real_states_beside_modelled_ones_in_one_frame() -> None:
    plane = Plane((0, 1), ("x", "y"), WALLS.numpy())
    figure = draw_future_states(future_sample(("x", "y"), observed=0.8), plane, "t")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title().splitlines()[-1].split(",")[0] for axes in panels] == ["real", "modelled"] * 6
    assert "discount 0.9\nhorizon 10 steps" in panels[2].get_title()
    assert len({axes.get_xlim() + axes.get_ylim() for axes in panels}) == 1
    assert len({mesh.get_clim() for axes in panels for mesh in axes.collections}) == 1
    assert "hold 80 % of the discounted weight" in figure.get_suptitle()


def test_entries_that_are_left_out_are_counted() -> None:
    figure = draw_future_marginals(future_sample(tuple("abcdefghijklmn")), "t")
    assert "the first 12 of 14 entries" in figure.get_suptitle()
    assert [axes.get_xlabel() for axes in figure.axes[:12]] == list("abcdefghijkl")
    assert "left" not in draw_future_marginals(future_sample(("a", "b", "c")), "t").get_suptitle()


def test_names_with_dollars_are_drawn(tmp_path: Path) -> None:
    names = (r"$\bad{$", "cost_$^{$")
    rewards = {r"$\bad{$": LinearReward((names[0],), (1.0,))}
    wanted = {"future_states.png", "values.png"}
    assert draw(tmp_path / "two", model(table(*names), rewards=rewards), batch(2)) == wanted
    assert draw(tmp_path / "three", model(table(*names, "$^^$")), batch(3)) == {"future_marginals.png"}


def test_panels_of_rewards_hold_the_diagonal_and_every_source_state() -> None:
    values = sample_values(ExactCycle(), cycle_rollouts([1, 30, 60], 90), {"a": NEVER, "b": NEVER}, 20)
    figure = draw_values(values, "t")
    for axes in figure.axes:
        (equal, points) = axes.lines[:2]
        assert np.array_equal(equal.get_xdata(), equal.get_ydata())
        assert len(np.asarray(points.get_xdata())) == 3
        assert axes.get_xlim() == axes.get_ylim()


@pytest.mark.parametrize("name", ["num_states", "num_samples", "value_samples"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least [12], got 0"):
        OccupancyFigures(**{name: 0})


def test_nothing_is_drawn_when_it_is_switched_off_or_elsewhere(tmp_path: Path) -> None:
    module, held = model(table("a", "b")), batch(2)
    OccupancyFigures(enabled=False).on_test_batch_end(stand_in_trainer(tmp_path), module, None, held, 0)
    second_rank = stand_in_trainer(tmp_path, is_global_zero=False)
    OccupancyFigures().on_test_batch_end(second_rank, module, None, held, 0)
    OccupancyFigures().on_test_batch_end(stand_in_trainer(tmp_path), module, None, held, 1)
    assert not (tmp_path / "figures").exists()


def test_data_have_the_walls_of_an_environment_in_the_plane(tmp_path: Path) -> None:
    trajectory_store(tmp_path / "set")
    maze = PointMassMaze()
    made = [
        OfflineData(str(tmp_path / "set"), environment=environment)
        for environment in (ProcessEnvironment(maze), ProcessEnvironment(LinearGaussianProcess()), None)
    ]
    assert made[0].walls is not None
    assert torch.equal(made[0].walls, maze.walls())
    assert made[1].walls is made[2].walls is None
