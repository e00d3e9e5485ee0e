"""Running moments of columns, and networks that share their units."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.nets import (
    CriticArchitecture,
    GaussianArchitecture,
    ObservationFeatures,
    RunningUnits,
    VelocityArchitecture,
    moments_of,
    share_units,
)
from tests.oracles import F64


def batches(offset: float = 0.0) -> list[Tensor]:
    """Batches of several sizes, whose columns have other units and drift."""
    generator = torch.Generator().manual_seed(0)
    sizes = (5, 1, 17, 64, 3)
    units = torch.tensor([1.0, 1e-3, 50.0])
    return [offset + k * units + units * torch.randn(n, 3, generator=generator) for k, n in enumerate(sizes)]


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_units_are_the_moments_of_all_rows_together(offset: float) -> None:
    units, rows = RunningUnits(3), batches(offset)
    for batch in rows:
        units.update(batch)
    joined = torch.cat(rows).double().numpy()
    count, mean, squares = units.moments.numpy()
    np.testing.assert_array_equal(count, len(joined))
    np.testing.assert_allclose(mean, joined.mean(0), rtol=1e-13)
    np.testing.assert_allclose(squares / count, joined.var(0), rtol=1e-9)
    np.testing.assert_allclose(units.scale.numpy()[0::2], joined.std(0)[0::2], rtol=1e-6)


def test_millions_of_rows_are_counted_in_double_precision() -> None:
    units = RunningUnits(1)
    units.add(torch.tensor([[2.0e7], [1_000.0], [2.0e7]], dtype=F64))
    units.update(torch.full((1, 1), 1_000.5))
    assert float(units.moments[0, 0]) == 2.0e7 + 1.0
    assert float(units.moments[1, 0]) == pytest.approx(1_000.0 + 0.5 / (2.0e7 + 1.0), rel=1e-14)


def test_processes_come_to_the_units_of_one_that_has_all_rows() -> None:
    alone, rows = RunningUnits(3), batches()
    together = [RunningUnits(3) for _ in range(2)]
    for first, second in ((rows[0], rows[2]), (rows[3], rows[4])):
        alone.update(torch.cat([first, second]))
        parts = torch.stack([moments_of(first), moments_of(second)])
        for units, own in zip(together, (first, second), strict=True):
            units.update(own, lambda _, parts=parts: parts)
    torch.testing.assert_close(together[0].moments, alone.moments, rtol=1e-12, atol=0.0)
    assert torch.equal(together[0].moments, together[1].moments)


def test_nothing_seen_leaves_rows_alone() -> None:
    rows = torch.randn(4, 3)
    units = RunningUnits(3)
    assert units.is_empty
    assert torch.equal(units(rows), rows)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_a_constant_column_becomes_zero_and_does_not_explode_when_it_varies(value: float) -> None:
    units = RunningUnits(2)
    for size in (7, 9, 30):
        units.update(torch.stack([torch.full((size,), value), torch.randn(size)], 1))
    assert float(units.scale[0]) == 1.0
    standard = units(torch.tensor([[value, 0.0], [value + 0.25, 0.0], [value + 1e5, 0.0]]))[:, 0]
    torch.testing.assert_close(standard, torch.tensor([0.0, 0.25, 10.0]), rtol=0.0, atol=2e-3)


def test_a_column_that_varies_by_its_rounding_alone_is_constant() -> None:
    units, level = RunningUnits(1), torch.tensor([1e4])
    rows = torch.cat([level, torch.nextafter(level, 2.0 * level)])[:, None]
    assert rows[0] != rows[1]
    units.update(rows)
    assert float(units.scale) == 1.0
    units.update(rows + 0.1 * torch.randn(2, 1))
    assert float(units.scale) < 0.2


def test_standardised_entries_are_clipped_on_both_sides() -> None:
    units = RunningUnits(1)
    units.update(torch.tensor([[-1.0], [1.0]]))
    assert units(torch.tensor([[-50.0], [-9.0], [9.0], [50.0]])).flatten().tolist() == [-10.0, -9.0, 9.0, 10.0]


def networks() -> dict[str, tuple[torch.nn.Module, object]]:
    torch.manual_seed(0)
    action, x, t = torch.rand(6, 2), torch.randn(6, 2), torch.rand(6)
    waves = ObservationFeatures(num_frequencies=1)
    return {
        "critic": (CriticArchitecture(hidden_dim=8).build(3, 2), lambda net, o: net(o, action)),
        "many actions": (
            CriticArchitecture(hidden_dim=8, layer_norm=True, observations=waves).build(3, 2),
            lambda net, o: net.action_values_and_gradients(o, action[:, None])[1],
        ),
        "velocity": (VelocityArchitecture(8, time_features=4).build(2, 3), lambda net, o: net(x, t, o)),
        "Gaussian": (GaussianArchitecture(8).build(3, 2), lambda net, o: torch.cat(net(o))),
    }


@pytest.mark.parametrize("name", networks())
def test_a_network_with_units_is_the_network_of_standardised_observations(name: str) -> None:
    network, evaluate = networks()[name]
    plain, units, rows = copy.deepcopy(network), RunningUnits(3), batches(5.0)
    share_units(units, network)
    for batch in rows:  # units change under the network
        units.update(batch)
        observation = rows[3][:6]
        standard = (observation - units.shift) / units.scale
        torch.testing.assert_close(evaluate(network, observation), evaluate(plain, standard))


def test_a_network_without_observations_or_with_units_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="takes observations, got Linear"):
        share_units(RunningUnits(2), torch.nn.Linear(2, 2))
    fixed = CriticArchitecture(observations=ObservationFeatures((0.0, 0.0), (1.0, 1.0))).build(2, 1)
    with pytest.raises(UserError, match="must be empty"):
        share_units(RunningUnits(2), fixed)
