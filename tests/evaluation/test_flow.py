"""What is measured of a generative model: distances, densities, trajectories, accuracy by number of steps."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Samples, read_samples
from flowmatch_rl.checks import RunError
from flowmatch_rl.evaluation import (
    FlowSample,
    FlowTests,
    density_on_grid,
    distance_by_steps,
    field_on_grid,
    sample_flow,
)
from flowmatch_rl.evaluation.view import group_rows, limits, limits_along_path, view_of
from flowmatch_rl.models import Flow, GenerativeModel
from flowmatch_rl.nets import FlowNetwork
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.samplers import OdeSampler, SdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import AdaptiveSolver, Euler, Midpoint
from tests.callbacks.test_flow_figures import CLASSES, held_out, table, tiny_flow

UNITS = TableSchema(("x", "y"), (3.0, -1.0), (2.0, 4.0))


class Shrinking(FlowNetwork):
    """A network whose velocity ``rate x`` carries N(0, 1) to N(0, exp(2 rate))."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(rate))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
        return self.rate * x

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        return lambda x, *_: self.rate * x


def exact_gaussian(scale: float = 0.5) -> GenerativeModel:
    """A model of N(0, scale^2) per standardised column, whose field and density are known."""
    flow = Flow(Shrinking(math.log(scale)), AffinePath())
    return GenerativeModel(flow, UNITS, OdeSampler(Midpoint(40)))


def sampled_gaussian() -> FlowSample:
    data = 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(5))
    return sample_flow(exact_gaussian(), Samples(data), 2000)


def measured(batch: dict[str, Tensor], scale: float = 0.5, **options: Any) -> dict[str, float]:
    tests = FlowTests(**({"likelihood_samples": 300, "transport_samples": 300} | options))
    found = tests.test(exact_gaussian(scale), batch, torch.Generator().manual_seed(0))
    return {name: float(value) for name, value in found.metrics().items()}


def gaussian_batch(number: int = 1000, scale: float = 0.5) -> dict[str, Tensor]:
    sample = scale * torch.randn(number, 2, generator=torch.Generator().manual_seed(7))
    exact = torch.distributions.Normal(0.0, scale).log_prob(sample).sum(1) - UNITS.log_volume
    return {"sample": sample, "exact_log_prob": exact}


def test_a_model_is_as_far_from_data_as_its_distribution_is() -> None:
    exact, wide = measured(gaussian_batch()), measured(gaussian_batch(), scale=1.5)
    assert abs(exact["energy_distance"]) < 0.01
    assert exact["wasserstein"] < 0.2
    # The optimal transport between N(0, a^2) and N(0, b^2) in the plane has the squared cost 2 (a - b)^2.
    assert wide["squared_wasserstein"] == pytest.approx(2.0, rel=0.25)
    assert wide["energy_distance"] > 0.2
    assert wide["maximum_mean_discrepancy"] > exact["maximum_mean_discrepancy"]
    assert wide["sliced_wasserstein"] > exact["sliced_wasserstein"]


def test_the_likelihood_of_an_exact_model_is_the_exact_one() -> None:
    found = measured(gaussian_batch())
    assert found["nll"] == pytest.approx(found["nll_exact"], abs=1e-3)
    assert found["nll_per_dim"] == pytest.approx(found["nll"] / 2.0)
    # The log-density of a standard normal in the plane has the variance 1.
    assert found["nll_standard_error"] == pytest.approx(300**-0.5, rel=0.2)


def test_what_is_not_measured_is_not_reported() -> None:
    tests, batch = FlowTests(likelihood_samples=0), gaussian_batch()
    found = measured(batch, likelihood_samples=0)
    assert not any(name.startswith("nll") for name in found)
    assert [line.split()[0] for line in tests.lines({f"test/{name}": v for name, v in found.items()})] == ["distance"]
    without = measured({"sample": batch["sample"]})
    assert "nll" in without
    assert "nll_exact" not in without
    lines = tests.lines({f"test/{name}": v for name, v in without.items()})
    assert [line.split()[0] for line in lines] == ["distance", "likelihood"]
    assert "true distribution" not in lines[1]
    assert tests.lines({"train/loss": 1.0}) == []


def test_samples_that_are_not_finite_break_off_a_test() -> None:
    with pytest.raises(RunError, match="1000 of 1000 generated samples are not finite"):
        measured(gaussian_batch(), scale=torch.nan)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"likelihood_samples": 1}, "likelihood_samples must be 0 or at least 2, got 1"),
        ({"transport_samples": 1}, "transport_samples must be at least 2, got 1"),
    ],
)
def test_counts_out_of_range_are_refused(option: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowTests(**option)


def test_the_density_is_that_of_the_model_and_sums_to_one() -> None:
    grid = density_on_grid(exact_gaussian(), sampled_gaussian(), grid=41, seconds=1e4)
    assert grid.density.shape == (41, 41)
    assert grid.mass == pytest.approx(1.0, abs=0.02)
    steps = (grid.frame[1] - grid.frame[0]) / 41
    centres = [grid.frame[0, i] + (np.arange(41) + 0.5) * steps[i] for i in (0, 1)]
    squares = ((centres[0] - 3.0) / 1.0)[None] ** 2 + ((centres[1] + 1.0) / 2.0)[:, None] ** 2
    exact = np.exp(-0.5 * squares) / (4.0 * np.pi)
    computed = grid.density > 0.0
    np.testing.assert_allclose(grid.density[computed], exact[computed], rtol=1e-3)
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


def test_straight_trajectories_are_as_long_as_their_distance_and_detours_longer() -> None:
    sample = sampled_gaussian()
    assert sample.straightness == pytest.approx(1.0, abs=1e-4)
    there_and_back = torch.tensor([0.0, 3.0, 1.0])[:, None, None].expand(3, 5, 2)
    assert FlowSample(**{**vars(sample), "points": there_and_back}).straightness == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("sampler", "per_step"), [(OdeSampler(Euler(3)), 1), (OdeSampler(Midpoint(3)), 2), (SdeSampler(3), 1)]
)
def test_network_evaluations_are_counted_per_sample(sampler: Any, per_step: int) -> None:
    module = tiny_flow(table(2, "number"), sampler=sampler, t_min=0.01)
    errors = distance_by_steps(module.model, read_samples(held_out(table(2, "number"))), 20)
    assert errors is not None
    assert errors.evaluations.tolist() == [per_step * steps for steps in errors.steps]
    assert errors.evaluations[-1] == 64
    assert errors.configured == 3 * per_step
    assert np.isfinite(errors.distance).all()


def test_more_steps_come_closer_to_the_data() -> None:
    """The field of a path to a point mass, whose samples are exact only after many steps of a rough solver."""
    model = tiny_flow(table(1)).model
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    for parameter in model.flow.parameters():
        parameter.mul_(1.5)
    data = model.sample(noise, sampler=OdeSampler(Euler(512)))
    errors = distance_by_steps(model, Samples(data), 200)
    assert errors is not None
    assert errors.distance[0] > 3.0 * errors.distance[-1]
    assert errors.distance[-1] < 2.0 * errors.noise


def test_a_solver_that_chooses_its_steps_is_not_measured_by_them() -> None:
    module = tiny_flow(table(1), sampler=OdeSampler(AdaptiveSolver(rtol=0.1, atol=0.1)))
    assert distance_by_steps(module.model, read_samples(held_out(table(1))), 20) is None


def test_two_columns_are_shown_in_their_units_and_more_by_principal_components() -> None:
    data = torch.randn(50, 2)
    np.testing.assert_allclose(view_of(UNITS, data).show(data), UNITS.restore(data).numpy())
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
    still = limits_along_path(np.stack([2.0 * cloud, cloud]), last)
    np.testing.assert_array_equal(still[0], still[1])
    moving = limits_along_path(np.stack([80.0 * cloud, cloud]), last)
    assert (moving[0, 1] > 50.0 * moving[1, 1]).all()
