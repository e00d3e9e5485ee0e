"""One-step models of linear systems, in awkward units."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import DeterministicDynamics, DynamicsSettings, ResidualDynamics
from flowmatch_rl.nets import DynamicsArchitecture
from flowmatch_rl.schema import TableSchema
from tests.families import DYNAMICS

SCHEMA = TableSchema(("x", "speed", "still"), (3.0, 50.0, 1.0), (2.0, 13.0, 0.5))
ENDS_BELOW = 1.0


def environment(state: Tensor, action: Tensor) -> Tensor:
    speed = 0.9 * state[..., 1:2] + 6.0 * action
    return torch.cat([state[..., :1] + 0.02 * (speed - 50.0), speed, state[..., 2:]], dim=-1)


def batch(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    state = torch.randn(size, 3) * torch.tensor(SCHEMA.scale) + torch.tensor(SCHEMA.shift)
    action = 2.0 * torch.rand(size, 1) - 1.0
    arrival = environment(state, action)
    return state, action, arrival, arrival[:, 0] < ENDS_BELOW


@pytest.fixture(scope="module")
def trained() -> ResidualDynamics:
    torch.manual_seed(0)
    dynamics = DeterministicDynamics(DynamicsArchitecture(num_members=3, hidden_dim=32)).build(SCHEMA, 1)
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=1e-2)
    dynamics.measure(*batch(4_000)[::2])
    for update in range(400):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1.0 - update / 400)
        optimizer.zero_grad()
        dynamics.loss(*batch(256)).mean().backward()
        optimizer.step()
    return dynamics


def test_a_step_leads_where_that_of_the_environment_does(trained: ResidualDynamics) -> None:
    state, action, arrival, terminated = batch(4_000)
    step = trained.step(state, action)
    change = (arrival - state).square().mean(0).sqrt()
    error = (step.arrival - arrival).square().mean(0).sqrt()
    assert bool((error[:2] < 0.05 * change[:2]).all())
    assert float(error[2]) < 1e-6
    assert float((step.terminal - terminated.float()).abs().mean()) < 0.03 < float(terminated.float().mean())


def test_members_disagree_far_from_the_data(trained: ResidualDynamics) -> None:
    state, action, *_ = batch(1_000)
    near = trained.step(state, action).spread
    far = trained.step(state + 8.0 * torch.tensor(SCHEMA.scale), action).spread
    assert float(near.mean()) < 0.05
    assert float(far.mean()) > 5.0 * float(near.mean())


every_model = pytest.mark.parametrize("settings", DYNAMICS, ids=lambda settings: type(settings).__name__)


@every_model
def test_nothing_is_terminal_before_a_termination_is_seen(settings: DynamicsSettings) -> None:
    dynamics = settings.build(SCHEMA, 1)
    state, action, arrival, _ = batch(5)
    assert torch.equal(dynamics.step(state, action).terminal, torch.zeros(5))
    dynamics.loss(state, action, arrival, torch.zeros(5, dtype=torch.bool))
    assert torch.equal(dynamics.step(state, action).terminal, torch.zeros(5))
    dynamics.loss(state, action, arrival, torch.ones(5, dtype=torch.bool))
    assert bool((dynamics.step(state, action).terminal > 0.0).all())


@every_model
def test_losses_have_one_value_per_step_and_reach_every_weight(settings: DynamicsSettings) -> None:
    dynamics = settings.build(SCHEMA, 1)
    loss = dynamics.loss(*batch(1)[:3], torch.ones(1, dtype=torch.bool))
    assert loss.shape == (1,)
    loss.sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in dynamics.parameters())


@every_model
def test_states_are_moved_in_their_units_by_changes_in_those_of_a_step(settings: DynamicsSettings) -> None:
    dynamics = settings.build(SCHEMA, 1)
    state, _, arrival, _ = batch(4_000)
    dynamics.measure(state, arrival)
    change = dynamics.changes(state, arrival)
    torch.testing.assert_close(change.square().mean(0)[:2], torch.ones(2))
    torch.testing.assert_close(dynamics.move(state, change), arrival)


@every_model
def test_units_are_kept_with_the_weights(settings: DynamicsSettings) -> None:
    dynamics = settings.build(SCHEMA, 1)
    other = settings.build(TableSchema(SCHEMA.columns, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), 1)
    other.load_state_dict(dynamics.state_dict())
    state, action, *_ = batch(5)
    wanted, found = (model.step(state, action, torch.Generator().manual_seed(0)) for model in (dynamics, other))
    assert torch.equal(wanted.arrival, found.arrival)


@every_model
def test_batches_that_differ_are_refused(settings: DynamicsSettings) -> None:
    with pytest.raises(ValueError, match="action"):
        settings.build(SCHEMA, 1).step(torch.zeros(3, 3), torch.zeros(2, 1))


def test_a_change_that_remains_unexplained_is_a_misfit(trained: ResidualDynamics) -> None:
    state, action, arrival, _ = batch(1_000)
    assert trained.misfit(state, action, arrival) is None
    noisy = arrival + 0.4 * trained.change_scale * trained.state_scale * torch.randn_like(arrival)
    assert trained.misfit(state, action, noisy) is None
    noisy = arrival + trained.change_scale * trained.state_scale * torch.randn_like(arrival)
    assert "StochasticDynamics" in (trained.misfit(state, action, noisy) or "")


def test_frequencies_make_room_for_the_edge_of_a_wall() -> None:
    errors = []
    for frequencies in (0, 4):
        torch.manual_seed(0)
        schema = TableSchema(("x",), (0.0,), (1.0,))
        dynamics = DeterministicDynamics(DynamicsArchitecture(2, 32, num_frequencies=frequencies)).build(schema, 1)
        optimizer = torch.optim.Adam(dynamics.parameters(), lr=1e-2)
        for update in range(300):
            state, action = 2.0 * torch.rand(256, 1) - 1.0, torch.zeros(256, 1)
            arrival = torch.where((state > 0.0) & (state < 0.1), 0.0, state + 0.1)  # pushed back from a wall at .1
            optimizer.param_groups[0]["lr"] = 1e-2 * (1.0 - update / 300)
            optimizer.zero_grad()
            dynamics.loss(state, action, arrival, torch.zeros(256, dtype=torch.bool)).mean().backward()
            optimizer.step()
        errors.append(float((dynamics.step(state, action).arrival - arrival).square().mean().sqrt()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("name", "value"), [("num_members", 1), ("hidden_dim", 0), ("num_layers", 0), ("num_frequencies", -1)]
)
def test_sizes_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} must .* got {value}"):
        DynamicsArchitecture(**{name: value})
