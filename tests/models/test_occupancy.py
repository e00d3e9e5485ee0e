"""Units, conditions, samples and densities of an occupancy, and the dimensions it refuses."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import Horizon, Likelihood, Occupancy, OccupancyInputs
from flowmatch_rl.nets import FilmUNetArchitecture
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import HutchinsonDivergence, Midpoint
from flowmatch_rl.testbeds import MazeGoalPolicy
from tests.combinations import one_test
from tests.modules.occupancy_toys import PLANE, PLANE_POLICY, SMALL, occupancy, segments

FILM = FilmUNetArchitecture(block_dims=(16, 16), time_features=8, time_dims=(8,), condition_dims=(12,))


def restless(**options: Any) -> Occupancy:
    """A model with weights large enough to bend densities."""
    model = occupancy(**options).model
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.flow.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def known(size: int) -> tuple[Tensor, Tensor]:
    batch = segments(size)
    return batch["observation"], batch["action"]


def test_states_are_standardised_by_the_units_of_the_data() -> None:
    inputs = OccupancyInputs(PLANE, 2, 0, Horizon(0.9), ["speed", "x"])
    state = torch.tensor([[5.0, -1.2, 76.0]])
    torch.testing.assert_close(inputs.standardise(state), torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(inputs.restore(torch.tensor([[2.0, 1.0]])), torch.tensor([[76.0, 5.0]]))
    assert (inputs.sample_dim, inputs.condition_dim) == (2, 5)
    schema = inputs.sample_schema
    assert schema.labels == ("speed", "x")
    assert (schema.columns, schema.shift, schema.scale) == (("speed", "x"), (50.0, 3.0), (13.0, 2.0))
    assert schema.condition_columns == ("source_x", "source_y", "source_speed", "action_0", "action_1")
    assert schema.condition_dim == 5
    assert schema.condition_scale == (2.0, 0.2, 13.0, 1.0, 1.0)


def test_modelled_entries_keep_their_units() -> None:
    plane = dataclasses.replace(PLANE, units=("m", "m", "m/s"))
    assert OccupancyInputs(plane, 2, 0, Horizon(0.9), ["speed", "x"]).sample_schema.labels == ("speed [m/s]", "x [m]")


def test_a_condition_is_state_action_member_and_horizon_side_by_side() -> None:
    inputs = OccupancyInputs(PLANE, 2, 1, Horizon(0.9, 0.5))
    state, action, member = torch.tensor([[5.0, -1.2, 50.0]]), torch.tensor([[0.25, -0.5]]), torch.tensor([[7.0]])
    found = inputs.condition(state, action, member, torch.tensor([0.75]))
    wanted = torch.tensor([[1.0, -1.0, 0.0, 0.25, -0.5, 7.0, 0.75, 0.25, math.log(4.0)]])
    torch.testing.assert_close(found, wanted)
    assert inputs.condition_dim == 9
    torch.testing.assert_close(inputs.condition(state, action, member, 0.75), wanted)
    highest = inputs.condition(state, action, member, None)
    torch.testing.assert_close(highest, inputs.condition(state, action, member, 0.9))
    assert highest[0, 6].item() == pytest.approx(0.9)


def test_batch_sizes_of_one_are_shared() -> None:
    inputs = OccupancyInputs(PLANE, 2, 1, Horizon(0.9, 0.5))
    found = inputs.condition(torch.zeros(4, 1, 3), torch.zeros(1, 5, 2), torch.zeros(1, 1, 1), 0.5)
    assert found.shape == (4, 5, 9)


@pytest.mark.parametrize("network", [SMALL, FILM], ids=["velocity", "film"])
def test_samples_and_densities_have_the_shapes_of_their_batch(network) -> None:
    module = restless(network=network)
    state, action = known(4)
    noise = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    shared = module.sample(noise, state[:, None], action[:, None])
    assert shared.shape == (4, 6, 3)
    assert shared.dtype == torch.float32
    # Particles that share a condition are those with a copy of it each.
    each = module.sample(noise, state[:, None].expand(-1, 6, -1), action[:, None].expand(-1, 6, -1))
    torch.testing.assert_close(shared, each, rtol=1e-5, atol=1e-4)
    flat = module.sample(noise[:, 0], state, action)
    torch.testing.assert_close(flat, shared[:, 0], rtol=1e-5, atol=1e-4)
    assert module.log_prob(flat, state, action).shape == (4,)


def test_many_samples_may_share_one_state() -> None:
    module = restless()
    state, action = known(1)
    noise = torch.randn(5_000, 3, generator=torch.Generator().manual_seed(0))
    together = module.sample(noise, state, action)
    assert together.shape == (5_000, 3)
    few = module.sample(noise[-3:], state, action)
    torch.testing.assert_close(together[-3:], few, rtol=1e-5, atol=1e-4)


def test_only_the_modelled_columns_are_sampled() -> None:
    module = restless(columns=["speed"])
    state, action = known(4)
    drawn = module.sample(torch.zeros(4, 1), state, action)
    assert drawn.shape == (4, 1)
    assert module.schema.columns == ("speed",)
    assert module.log_prob(drawn, state, action).shape == (4,)


def test_the_density_integrates_to_one_in_the_units_of_the_environment() -> None:
    module = restless(columns=["speed"], likelihood=Likelihood(Midpoint(30)), sampler=OdeSampler(Midpoint(30)))
    state, action = known(1)
    grid = torch.linspace(50.0 - 32 * 13.0, 50.0 + 32 * 13.0, 3_001)[:, None]
    log_density = module.log_prob(grid, state.expand(3_001, -1), action.expand(3_001, -1)).double()
    mass = log_density.exp() * (grid[1] - grid[0]).double()
    assert float(mass.sum()) == pytest.approx(1.0, abs=3e-3)
    drawn = module.sample(torch.special.ndtri((torch.arange(500) + 0.5) / 500)[:, None], state, action)
    assert float(drawn.mean()) == pytest.approx(float((grid[:, 0] * mass).sum()), abs=1.0)
    # The density is one of its own, not that of the noise.
    normal = torch.distributions.Normal(50.0, 13.0).log_prob(grid)[:, 0]
    assert float((log_density - normal).abs().max()) > 0.3


def test_the_density_of_a_field_that_stands_still_is_that_of_noise_in_those_units() -> None:
    module = occupancy().model
    with torch.no_grad():
        for weight in module.flow.parameters():
            weight.zero_()
    state, action = known(6)
    scale, shift = torch.tensor(PLANE.scale), torch.tensor(PLANE.shift)
    wanted = torch.distributions.Normal(shift, scale).log_prob(state).sum(1)
    torch.testing.assert_close(module.log_prob(state, state, action), wanted, rtol=1e-5, atol=1e-4)
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module.sample(noise, state, action), noise * scale + shift)


def test_random_probes_depend_on_their_generator_alone() -> None:
    module = restless(likelihood=Likelihood(Midpoint(20), HutchinsonDivergence(num_probes=2)))
    state, action = known(5)
    values = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)
        values.append(module.log_prob(state, state, action, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_a_model_of_many_horizons_is_another_at_each() -> None:
    module = restless(horizon=Horizon(0.9, 0.5))
    state, action = known(4)
    noise = torch.zeros(4, 3)
    samples = {g: module.sample(noise, state, action, discount=g) for g in (0.5, 0.7, 0.9)}
    assert not torch.allclose(samples[0.5], samples[0.7])
    torch.testing.assert_close(module.sample(noise, state, action), samples[0.9])
    tensor = module.sample(noise, state, action, discount=torch.full((4,), 0.7))
    torch.testing.assert_close(tensor, samples[0.7])
    log_prob = module.log_prob(state, state, action, discount=0.5)
    assert not torch.allclose(log_prob, module.log_prob(state, state, action, discount=0.9))


SINGLE = "this model has the discount 0.9, got"
MANY = "this model has discounts from 0.5 to 0.9, got"


@one_test
@pytest.mark.parametrize(
    ("options", "discount", "message"),
    [
        ({}, 0.8, f"{SINGLE} 0.8; others need min_discount"),
        ({}, 0, f"{SINGLE} 0"),
        ({}, torch.tensor([0.9, 0.9, 0.8, 0.9]), f"{SINGLE} 0.8"),
        ({"horizon": Horizon(0.9, 0.5)}, 0.4, f"{MANY} 0.4"),
        ({"horizon": Horizon(0.9, 0.5)}, 0, f"{MANY} 0"),
        ({"horizon": Horizon(0.9, 0.5)}, torch.tensor([0.9, 0.5, 0.95, 0.7]), f"{MANY} 0.95"),
        ({"horizon": Horizon(0.9, 0.5)}, math.nan, f"{MANY} nan"),
    ],
    ids=str,
)
def test_a_discount_that_the_model_lacks_is_refused(options: dict[str, Any], discount: Any, message: str) -> None:
    module = occupancy(**options).model
    state, action = known(4)
    for ask in (
        lambda: module.sample(torch.zeros(4, 3), state, action, discount=discount),
        lambda: module.log_prob(state, state, action, discount=discount),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_its_own_discount_is_taken_however_it_is_written() -> None:
    module, many = occupancy().model, occupancy(horizon=Horizon(0.9, 0.5)).model
    state, action = known(4)
    wanted = module.sample(torch.zeros(4, 3), state, action)
    for discount in (0.9, torch.tensor(0.9), torch.full((4,), 0.9), torch.full((4,), 0.9, dtype=torch.float64)):
        assert torch.equal(module.sample(torch.zeros(4, 3), state, action, discount=discount), wanted)
    many.sample(torch.zeros(4, 3), state, action, discount=torch.tensor([0.5, 0.9, 0.9, 0.5]))


@one_test
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": torch.zeros(4, 2)}, "expected state of dimension 3, got 2"),
        ({"action": torch.zeros(4, 3)}, "expected action of dimension 2, got 3"),
        ({"embedding": torch.zeros(4, 1)}, "expected embedding of dimension 0, got 1"),
        ({"point": torch.zeros(4, 1)}, r"of shape \(4, 3\), got \(4, 1\)"),
        ({"point": torch.zeros(4, 4)}, r"of shape \(4, 3\), got \(4, 4\)"),
    ],
    ids=["state", "action", "embedding", "one column", "four columns"],
)
def test_dimensions_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    module = occupancy().model
    state, action = known(4)
    arguments: dict[str, Any] = {"observation": state, "action": action, "embedding": None} | change
    point = arguments.pop("point", torch.zeros(4, 3))
    for ask in (module.sample, module.log_prob):
        with pytest.raises(ValueError, match=message):
            ask(point, **arguments)


def test_a_member_of_another_dimension_or_none_is_refused() -> None:
    module = occupancy(policy=None, embedding_dim=2).model
    state, action = known(4)
    for embedding, got in ((None, 0), (torch.zeros(4, 1), 1)):
        with pytest.raises(ValueError, match=f"expected embedding of dimension 2, got {got}"):
            module.sample(torch.zeros(4, 3), state, action, embedding)


def test_an_unknown_column_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="the state has no column 'height'; it has x, y, speed"):
        occupancy(columns=["x", "height"])


def test_units_of_another_schema_are_taken_without_a_trace_in_the_weights() -> None:
    module = occupancy().model
    names = set(module.state_dict())
    module.inputs.use(TableSchema(PLANE.columns, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert set(module.state_dict()) == names
    assert not any("inputs" in name for name in names)
    assert torch.equal(module.inputs.standardise(torch.ones(1, 3)), torch.ones(1, 3))


def test_members_are_those_that_the_family_draws_and_depend_on_the_generator_alone() -> None:
    schema = TableSchema(("x", "y", "vx", "vy"), (0.0,) * 4, (0.2, 0.2, 0.1, 0.1))
    policy = MazeGoalPolicy()
    model = occupancy(schema, 2, policy=policy).model
    found = [model.draw_members(500, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    uniform = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[0], policy.embeddings(uniform))


def test_a_single_policy_has_a_member_without_entries() -> None:
    for policy in (PLANE_POLICY, None):
        members = occupancy(policy=policy).model.draw_members(7)
        assert members.shape == (7, 0)


def test_members_known_from_data_alone_cannot_be_drawn() -> None:
    with pytest.raises(UserError, match="expected a family to draw embeddings of dimension 2 from"):
        occupancy(policy=None, embedding_dim=2).model.draw_members(7)
