"""One-step models that draw the state that follows, against processes whose distributions are known."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.models import Flow, FlowDynamics, StochasticDynamics
from flowmatch_rl.nets import FlowNetwork, VelocityArchitecture
from flowmatch_rl.objectives import MeanFlow
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.samplers import AverageVelocitySampler, OdeSampler, SdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy
from tests.models.test_dynamics import SCHEMA, batch

SMALL = VelocityArchitecture(32, 1, "silu", time_features=8, max_frequency=10.0, balanced_inputs=True)
TINY = StochasticDynamics(network=SMALL)
PROCESS = LinearGaussianProcess(drift=[0.1, -0.2])
POLICY = LinearPolicy(gain=[[-0.5, -0.5]], bias=[0.3])
UNITS = TableSchema(PROCESS.columns, (0.4, -0.1), (0.5, 0.7))
COVARIANCE = torch.tensor(PROCESS.noise_factor) @ torch.tensor(PROCESS.noise_factor).T
CHANGE_SCALE = torch.tensor([0.3, 0.6])


class ExactVelocity(FlowNetwork):
    """The velocity from noise to the change of the process, in units of the change of one step."""

    def __init__(self, noise: float = 1.0) -> None:
        super().__init__()
        self.to_velocity = torch.nn.Linear(1, 1)
        self.noise = noise

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        assert condition is not None
        unit = torch.tensor(UNITS.scale) * CHANGE_SCALE
        state = condition[..., :2] * torch.tensor(UNITS.scale) + torch.tensor(UNITS.shift)
        mean = (PROCESS.next_mean(state, condition[..., 2:]) - state) / unit
        covariance = self.noise**2 * COVARIANCE / unit[:, None] / unit
        variances, axes = torch.linalg.eigh(covariance)

        def velocity(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            time = append_dims(t, like=x)
            slopes = (time * variances - (1.0 - time)) / ((1.0 - time).square() + time.square() * variances)
            return mean + ((x - time * mean) @ axes * slopes) @ axes.T

        return velocity


def exact(noise: float = 1.0) -> FlowDynamics:
    dynamics = StochasticDynamics(sampler=OdeSampler(Midpoint(num_steps=12))).build(UNITS, 1)
    dynamics.members = torch.nn.ModuleList(Flow(ExactVelocity(noise), AffinePath()) for _ in range(2))
    dynamics.change_scale.copy_(CHANGE_SCALE)
    return dynamics


def check_moments(drawn: Tensor, mean: Tensor, covariance: Tensor, tolerance: float) -> None:
    """Compare draws (B, K, S) with a mean (B, S) and covariance (S, S), relative to the standard deviations."""
    scale = covariance.diagonal().sqrt()
    found = torch.stack([torch.cov(rows.T) for rows in drawn])
    assert float(((drawn.mean(1) - mean) / scale).abs().max()) < tolerance
    assert float(((found - covariance) / scale / scale[:, None]).abs().max()) < 2.0 * tolerance


def test_steps_at_the_exact_field_have_the_distribution_of_the_process() -> None:
    generator = torch.Generator().manual_seed(0)
    state, action = torch.tensor([[0.5, -1.0], [-0.3, 0.2]]), torch.tensor([[0.7], [-0.4]])
    rows = [part.repeat_interleave(20_000, 0) for part in (state, action)]
    step = exact().step(*rows, generator)
    check_moments(step.arrival.reshape(2, -1, 2), PROCESS.next_mean(state, action), COVARIANCE, 0.03)
    assert float(step.spread.max()) < 1e-5


def test_states_after_many_steps_of_a_policy_have_the_distribution_of_the_process() -> None:
    generator, dynamics = torch.Generator().manual_seed(0), exact()
    gain, bias = POLICY.matrices(COVARIANCE)
    closed = torch.tensor(PROCESS.transition) + torch.tensor(PROCESS.control) @ gain
    shift = torch.tensor(PROCESS.drift) + torch.tensor(PROCESS.control) @ bias
    mean, covariance = torch.tensor([[0.5, -1.0]]), torch.zeros(2, 2)
    state = mean.repeat_interleave(20_000, 0)
    for _ in range(12):
        state = dynamics.step(state, POLICY.act(state), generator).arrival
        mean, covariance = mean @ closed.T + shift, closed @ covariance @ closed.T + COVARIANCE
    check_moments(state[None], mean, covariance, 0.04)


def test_a_trained_model_has_mean_and_covariance_of_the_process() -> None:
    torch.manual_seed(0)
    dynamics, generator = TINY.build(UNITS, 1), torch.Generator().manual_seed(1)

    def steps(number: int) -> tuple[Tensor, Tensor, Tensor]:
        state = torch.randn(number, 2, generator=generator) * torch.tensor(UNITS.scale) + torch.tensor(UNITS.shift)
        action = 2.0 * torch.rand(number, 1, generator=generator) - 1.0
        return state, action, PROCESS.step(state, action, torch.randn(number, 2, generator=generator))[0]

    dynamics.measure(*steps(2_000)[::2])
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=1e-2)
    for update in range(400):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1.0 - update / 400)
        optimizer.zero_grad()
        dynamics.loss(*steps(256), torch.zeros(256, dtype=torch.bool), generator).mean().backward()
        optimizer.step()
    state, action, _ = steps(16)
    step = dynamics.step(*(part.repeat_interleave(4_000, 0) for part in (state, action)), generator)
    drawn = step.arrival.reshape(16, -1, 2)
    scale = COVARIANCE.diagonal().sqrt()
    assert float(((drawn.mean(1) - PROCESS.next_mean(state, action)) / scale).square().mean().sqrt()) < 0.2
    found = torch.stack([torch.cov(rows.T) for rows in drawn]).mean(0)
    assert float(((found - COVARIANCE) / scale / scale[:, None]).abs().max()) < 0.25
    assert float(step.spread.mean()) < 0.15
    assert dynamics.misfit(*steps(1_000), generator) is None


def test_members_that_agree_have_no_spread_however_random_a_step_is() -> None:
    dynamics = TINY.build(SCHEMA, 1)
    state, action, *_ = batch(50)
    torch.nn.init.normal_(dynamics.members[0].network.to_velocity.weight)
    assert float(dynamics.step(state, action).spread.min()) > 0.05
    dynamics.members[1].load_state_dict(dynamics.members[0].state_dict())
    assert torch.equal(dynamics.step(state, action).spread, torch.zeros(50))
    assert not torch.equal(dynamics.step(state, action).arrival, dynamics.step(state, action).arrival)


def test_a_step_is_that_of_either_member() -> None:
    dynamics, ones = TINY.build(SCHEMA, 1), []
    state, action, *_ = batch(200)
    for member in range(2):
        alone = copy.deepcopy(dynamics)
        alone.members[1 - member].load_state_dict(dynamics.members[member].state_dict())
        ones.append(alone.step(state, action, torch.Generator().manual_seed(3)).arrival)
    drawn = dynamics.step(state, action, torch.Generator().manual_seed(3)).arrival
    first, second = ((drawn == one).all(1) for one in ones)
    assert bool((first | second).all())
    assert 60 < int((first & ~second).sum()) < 140


def test_noise_comes_from_the_generator_alone() -> None:
    dynamics = TINY.build(SCHEMA, 1)
    steps, before = batch(20), torch.get_rng_state()

    def results() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [dynamics.loss(*steps, generator), *dynamics.step(*steps[:2], generator)]

    assert all(torch.equal(one, other) for one, other in zip(results(), results(), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_whether_a_step_ends_belongs_to_the_state_that_was_drawn() -> None:
    """A coin decides between two states, one of which is terminal."""
    torch.manual_seed(0)
    dynamics = TINY.build(TableSchema(("x",), (0.0,), (1.0,)), 1)
    optimizer = torch.optim.Adam(dynamics.termination.parameters(), lr=1e-2)
    for _ in range(60):
        state, action = torch.zeros(128, 1), torch.zeros(128, 1)
        arrival = torch.where(torch.rand(128, 1) < 0.5, 1.0, -1.0)
        optimizer.zero_grad()
        dynamics.loss(state, action, arrival, arrival[:, 0] > 0.0).mean().backward()
        optimizer.step()
    step = dynamics.step(torch.zeros(400, 1), torch.zeros(400, 1))
    assert float(step.terminal[step.arrival[:, 0] > 0.5].mean()) > 0.95
    assert float(step.terminal[step.arrival[:, 0] < -0.5].mean()) < 0.05


@pytest.mark.parametrize(("noise", "fits"), [(1.0, True), (0.01, False), (3.0, False)])
def test_a_model_that_scatters_otherwise_than_the_process_is_a_misfit(noise: float, fits: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    state, action = torch.randn(2_000, 2, generator=generator), torch.zeros(2_000, 1)
    arrival, _ = PROCESS.step(state, action, torch.randn(2_000, 2, generator=generator))
    found = exact(noise).misfit(state, action, arrival, generator)
    assert found is None if fits else found is not None and "differ by" in found


def test_average_velocities_need_their_sampler_and_take_one_step() -> None:
    with pytest.raises(UserError, match="average velocities"):
        StochasticDynamics(sampler=AverageVelocitySampler()).build(SCHEMA, 1)
    dynamics = StochasticDynamics(network=SMALL, objective=MeanFlow(), sampler=AverageVelocitySampler()).build(
        SCHEMA, 1
    )
    dynamics.loss(*batch(16)).sum().backward()
    assert dynamics.step(*batch(4)[:2]).arrival.shape == (4, 3)


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_members must .* got 1"):
        StochasticDynamics(num_members=1)
    with pytest.raises(UserError, match="adds no noise"):
        StochasticDynamics(sampler=SdeSampler())
