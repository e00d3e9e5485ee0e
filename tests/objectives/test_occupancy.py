"""Objectives of occupancies, held against a linear-Gaussian process whose velocity is known exactly."""

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowmatch_rl.objectives import (
    TD2CFM,
    TD2DD,
    TDCFM,
    TDDD,
    Backup,
    BackupNoise,
    CoupledTDCFM,
    MonteCarloCFM,
    OccupancyObjective,
    flow_matching_loss,
)
from flowmatch_rl.paths import AffinePath, CosineSchedule, Field, PathPoints, VariancePreservingSchedule
from flowmatch_rl.samplers import DdimSampler
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy
from flowmatch_rl.types import Velocity
from tests.combinations import each_value
from tests.families import OCCUPANCY_OBJECTIVES
from tests.oracles import F64, normal, uniform

DISCOUNT = 0.9
PROCESS = LinearGaussianProcess(transition=[[0.8]], control=[[0.5]], drift=[0.1], noise_factor=[[0.3]])
POLICY = LinearPolicy(gain=[[-0.9]], bias=[0.6])
LINEAR, COSINE, DIFFUSION = AffinePath(), AffinePath(CosineSchedule()), AffinePath(VariancePreservingSchedule())
SOLVER = Midpoint(num_steps=16)
T_MIN = 0.005

EXACT: list[tuple[OccupancyObjective, AffinePath]] = [
    (MonteCarloCFM(), LINEAR),
    (TDCFM(solver=SOLVER), LINEAR),
    (TD2CFM(solver=SOLVER), LINEAR),
    (TD2CFM(solver=SOLVER), COSINE),
    (TDDD(sampler=DdimSampler(num_steps=40)), DIFFUSION),
    (TD2DD(sampler=DdimSampler(num_steps=40)), DIFFUSION),
]
"""Objectives whose expected gradient vanishes at the exact velocity."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Off-policy transitions, with what an objective may get wrong about them."""

    state: Tensor
    action: Tensor
    arrival: Tensor
    noise: BackupNoise

    def backup(self, arrival: Tensor | None = None, next_action: Tensor | None = None) -> Backup:
        arrival = self.arrival if arrival is None else arrival
        action = POLICY.act(self.arrival) if next_action is None else next_action
        one = torch.ones_like(self.state[:, 0])
        return Backup(
            torch.cat([self.state, self.action], 1),
            arrival,
            (1.0 - DISCOUNT) * one,
            torch.cat([self.arrival, action], 1),
            DISCOUNT * one,
        )


def batch_of(size: int, seed: int) -> Batch:
    state, action = normal(size, 1, seed=seed), 2.0 * uniform(size, 1, seed=seed + 1) - 1.0
    arrival, _ = PROCESS.step(state, action, normal(size, 1, seed=seed + 2))
    draws = normal(3, size, 1, seed=seed + 3)
    times = T_MIN + (1.0 - 2.0 * T_MIN) * uniform(2, size, seed=seed + 4)
    return Batch(state, action, arrival, BackupNoise(*draws, *times, uniform(size, seed=seed + 5)))


@functools.cache
def exact_velocity(path: AffinePath) -> Velocity:
    known = PROCESS.exact_velocity(POLICY, DISCOUNT, path)

    def velocity(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return known(x, t, condition.expand(*x.shape[:-1], -1))

    return velocity


def exact_field(objective: OccupancyObjective, path: AffinePath) -> Field:
    velocity = Field(path, exact_velocity(path))
    return Field(path, functools.partial(velocity.read_as, objective.prediction), objective.prediction)


def gradients(objective: OccupancyObjective, path: AffinePath, backup: Backup, noise: BackupNoise) -> Tensor:
    """Gradient per sample, shape (B, J), in the direction of J functions added to the exact field."""
    field = exact_field(objective, path)
    weights = torch.zeros(len(backup.state), 6, dtype=F64, requires_grad=True)

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        with torch.no_grad():
            exact = field.predict(x, t, condition)
        state, action = condition.expand(*x.shape[:-1], -1).unbind(-1)
        features = torch.stack([torch.ones_like(t), x[..., 0], t, state, action, x[..., 0] * state], -1)
        return exact + (features * weights[:, None]).sum(-1, keepdim=True)

    direct, bootstrap = objective.loss(
        Field(path, predict, field.prediction), field, backup, noise, (T_MIN, 1.0 - T_MIN)
    )
    (gradient,) = torch.autograd.grad((direct + bootstrap).sum(), weights)
    return gradient


def largest_z_score(gradient: Tensor) -> float:
    return float((gradient.mean(0) / (gradient.std(0) / len(gradient) ** 0.5)).abs().max())


def on_policy_draws(batch: Batch) -> Backup:
    """Backups whose states are drawn from the exact occupancy."""
    mixture = PROCESS.occupancy(batch.state, batch.action, POLICY, DISCOUNT)
    size = len(batch.state)
    future = mixture.draw(uniform(size, seed=90), normal(size, 1, seed=91))
    one = torch.ones(size, dtype=F64)
    return dataclasses.replace(batch.backup(future), state_weight=one, next_weight=torch.zeros_like(one))


@pytest.mark.parametrize(("objective", "path"), EXACT, ids=str)
def test_the_expected_gradient_vanishes_at_the_exact_velocity(objective: OccupancyObjective, path: AffinePath) -> None:
    batch = batch_of(12_000, seed=10)
    backup = batch.backup() if objective.bootstraps else on_policy_draws(batch)
    assert largest_z_score(gradients(objective, path, backup, batch.noise)) < 4.0


def behaviour_action(batch: Batch) -> Backup:
    return batch.backup(next_action=2.0 * uniform(len(batch.state), 1, seed=92) - 1.0)


def swapped_weights(batch: Batch) -> Backup:
    backup = batch.backup()
    return dataclasses.replace(backup, state_weight=backup.next_weight, next_weight=backup.state_weight)


def current_state(batch: Batch) -> Backup:
    return batch.backup(arrival=batch.state)


def stale_bootstrap(batch: Batch) -> Backup:
    backup = batch.backup()
    return dataclasses.replace(backup, next_condition=backup.condition)


def masked_only(batch: Batch) -> Backup:
    """Some transitions terminate, and lose the bootstrap without its weight going to the direct term."""
    backup = batch.backup()
    ends = uniform(len(batch.state), seed=93) < 0.6
    return dataclasses.replace(backup, next_weight=backup.next_weight * ~ends)


@each_value
@pytest.mark.parametrize(
    "mistake",
    [behaviour_action, swapped_weights, current_state, stale_bootstrap, masked_only],
    ids=lambda mistake: mistake.__name__,
)
@pytest.mark.parametrize("objective", [TDCFM(solver=SOLVER), TD2CFM(solver=SOLVER)], ids=str)
def test_a_mistake_in_the_backup_leaves_a_gradient(
    objective: OccupancyObjective, mistake: Callable[[Batch], Backup]
) -> None:
    batch = batch_of(12_000, seed=10)
    z_score = largest_z_score(gradients(objective, LINEAR, mistake(batch), batch.noise))
    assert z_score > 6.0


def test_the_coupled_objective_leaves_a_gradient_at_intermediate_times() -> None:
    # By design: only the end of its path obeys the Bellman equation.
    batch = batch_of(12_000, seed=10)
    assert largest_z_score(gradients(CoupledTDCFM(solver=SOLVER), LINEAR, batch.backup(), batch.noise)) > 6.0


def test_both_unbiased_objectives_agree_away_from_the_optimum() -> None:
    batch = batch_of(12_000, seed=20)
    shifted = dataclasses.replace(batch, arrival=batch.arrival + 0.5)
    means, errors = [], []
    for objective in (TDCFM(solver=Midpoint(num_steps=12)), TD2CFM(solver=Midpoint(num_steps=12))):
        gradient = gradients(objective, LINEAR, shifted.backup(), shifted.noise)
        means.append(gradient.mean(0))
        errors.append(gradient.std(0) / len(gradient) ** 0.5)
    assert float(((means[0] - means[1]) / (errors[0] + errors[1])).abs().max()) < 3.5
    assert float((means[0] / errors[0]).abs().max()) > 6.0


def total_variance(gradient: Tensor) -> float:
    return float(gradient.var(0).sum())


def test_following_the_flow_has_less_gradient_variance_by_what_the_identity_says() -> None:
    batch, backup = (batch := batch_of(24_000, seed=30)), batch.backup()
    solver = Midpoint(num_steps=12)
    naive = gradients(TDCFM(solver=solver), LINEAR, backup, batch.noise)
    followed = gradients(TD2CFM(solver=solver), LINEAR, backup, batch.noise)
    # What the end points X_1 add: the variance of their conditional velocity about the marginal one, given x_t.
    expected = DISCOUNT**2 * _variance_of_conditional_velocity(batch, backup)
    excess = total_variance(naive) - total_variance(followed)
    assert excess == pytest.approx(expected, rel=0.08)
    assert total_variance(naive) > 3.0 * total_variance(followed)


def _variance_of_conditional_velocity(batch: Batch, backup: Backup) -> float:
    """Mean of ``|gradient of the field|^2 |u - v|^2`` over the bootstrapped branch, by exact draws of X_1."""
    state, action = backup.next_condition.split(1, 1)
    size, t = len(state), batch.noise.t_bootstrap
    x_1 = PROCESS.occupancy(state, action, POLICY, DISCOUNT).draw(uniform(size, seed=94), normal(size, 1, seed=95))
    x_t = LINEAR.sample(batch.noise.fresh, x_1, t)
    error = LINEAR.conditional_velocity(batch.noise.fresh, x_1, t) - exact_velocity(LINEAR)(
        x_t, t, backup.next_condition
    )
    x, s, a = x_t[:, 0], backup.condition[:, 0], backup.condition[:, 1]
    features = torch.stack([torch.ones_like(t), x, t, s, a, x * s], -1)
    return float((4.0 * features.square().sum(1) * error[:, 0].square()).mean())


@pytest.mark.parametrize("objective", [TDCFM(solver=SOLVER), TD2CFM(solver=SOLVER)], ids=str)
def test_stratified_terms_have_less_variance_than_a_coin_and_the_same_mean(objective: OccupancyObjective) -> None:
    batch = batch_of(8_000, seed=40)
    backup = dataclasses.replace(batch.backup(), state=batch.arrival + 0.3)
    found = {
        mixing: gradients(dataclasses.replace(objective, mixing=mixing), LINEAR, backup, batch.noise)
        for mixing in ("stratified", "bernoulli")
    }
    assert total_variance(found["stratified"]) < total_variance(found["bernoulli"])
    error = sum(g.var(0) / len(g) for g in found.values()) ** 0.5
    assert float(((found["stratified"].mean(0) - found["bernoulli"].mean(0)) / error).abs().max()) < 4.0


@pytest.mark.parametrize("objective", OCCUPANCY_OBJECTIVES, ids=str)
def test_without_a_discount_the_loss_is_flow_matching_on_one_step(objective: OccupancyObjective) -> None:
    batch, path = batch_of(64, seed=50), DIFFUSION if objective.prediction == "noise" else LINEAR
    one = torch.ones(64, dtype=F64)
    backup = dataclasses.replace(batch.backup(), state_weight=one, next_weight=torch.zeros_like(one))

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return 0.3 * x + condition[..., :1] * t[..., None]

    field = Field(path, predict, objective.prediction)
    direct, bootstrap = objective.loss(field, field, backup, batch.noise, (T_MIN, 1.0 - T_MIN))
    points = PathPoints.between(path, batch.noise.direct, batch.arrival, batch.noise.t_direct)
    wanted = flow_matching_loss(predict, path, points, backup.condition, objective.prediction)
    torch.testing.assert_close(direct, wanted)
    assert bootstrap.eq(0.0).all()


@pytest.mark.parametrize("objective", OCCUPANCY_OBJECTIVES, ids=str)
def test_no_gradient_reaches_the_ema_flow(objective: OccupancyObjective) -> None:
    batch, scale = batch_of(16, seed=60), torch.tensor(0.5, dtype=F64, requires_grad=True)
    path = DIFFUSION if objective.prediction == "noise" else LINEAR

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return scale * x

    frozen, own = Field(path, predict, objective.prediction), torch.tensor(0.2, dtype=F64, requires_grad=True)
    learner = Field(path, lambda x, t, condition: own * x, objective.prediction)
    direct, bootstrap = objective.loss(learner, frozen, batch.backup(), batch.noise, (T_MIN, 1.0 - T_MIN))
    (direct + bootstrap).sum().backward()
    assert own.grad is not None
    assert scale.grad is None
    assert bool((bootstrap > 0.0).any()) == objective.bootstraps


@pytest.mark.parametrize("objective", OCCUPANCY_OBJECTIVES, ids=str)
def test_the_reductions_differ_by_the_dimension(objective: OccupancyObjective) -> None:
    path = DIFFUSION if objective.prediction == "noise" else LINEAR
    noise = BackupNoise(*normal(3, 8, 3, seed=1), *(T_MIN + 0.9 * uniform(2, 8, seed=2)), uniform(8, seed=3))
    one = torch.ones(8, dtype=F64)
    condition = normal(8, 2, seed=4)
    backup = Backup(condition, normal(8, 3, seed=5), 0.1 * one, condition, 0.9 * one)
    field = Field(path, lambda x, t, c: torch.tanh(x), objective.prediction)
    summed, averaged = (
        dataclasses.replace(objective, reduction=how).loss(field, field, backup, noise, (T_MIN, 1.0 - T_MIN))
        for how in ("sum", "mean")
    )
    torch.testing.assert_close(summed[0], 3.0 * averaged[0])
    torch.testing.assert_close(summed[1], 3.0 * averaged[1])


def test_a_sample_followed_to_time_zero_is_its_noise() -> None:
    batch = batch_of(8, seed=70)
    noise = dataclasses.replace(batch.noise, t_bootstrap=torch.zeros(8, dtype=F64))
    field = Field(LINEAR, exact_velocity(LINEAR)).at(batch.backup().next_condition)
    found = TD2CFM().bootstrap(field, noise, (0.0, 1.0))
    assert found is not None
    torch.testing.assert_close(found[0], noise.start)


def test_bad_shapes_and_stochastic_samplers_are_refused() -> None:
    batch = batch_of(8, seed=80)
    field = Field(LINEAR, exact_velocity(LINEAR))
    with pytest.raises(ValueError, match="equal shapes"):
        TD2CFM().loss(field, field, batch.backup(), dataclasses.replace(batch.noise, direct=batch.noise.direct[:4]))
    with pytest.raises(ValueError, match="t_direct"):
        TD2CFM().loss(field, field, batch.backup(), dataclasses.replace(batch.noise, t_direct=torch.zeros(8, 1)))
    with pytest.raises(ValueError, match="deterministic"):
        TD2DD(sampler=DdimSampler(eta=0.5))


@pytest.mark.parametrize("objective", OCCUPANCY_OBJECTIVES, ids=str)
def test_a_latent_in_the_condition_learns_from_one_term(objective: OccupancyObjective) -> None:
    batch, path = batch_of(16, seed=100), DIFFUSION if objective.prediction == "noise" else LINEAR
    latent = batch.backup().condition.requires_grad_()

    def predict(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return torch.tanh(x) * condition.sum(-1, keepdim=True)

    field = Field(path, predict, objective.prediction)

    def gradient(backup: Backup, *terms: int) -> Tensor:
        losses = objective.loss(field, field, backup, batch.noise, (T_MIN, 1.0 - T_MIN))
        (found,) = torch.autograd.grad(torch.stack([losses[i].sum() for i in terms]).sum(), latent, allow_unused=True)
        return torch.zeros_like(latent) if found is None else found

    for term, own, other in (("direct", 0, 1), ("bootstrap", 1, 0)):
        backup = dataclasses.replace(batch.backup(), condition=latent, latent_term=term)
        learns = own if objective.bootstraps else 0
        assert gradient(backup, learns).any()
        torch.testing.assert_close(gradient(backup, 0, 1), gradient(backup, learns), rtol=0, atol=0)
        if objective.bootstraps:
            assert not gradient(backup, other).any()


def test_values_of_the_loss_do_not_depend_on_what_a_latent_learns_from() -> None:
    batch, field = batch_of(16, seed=110), exact_field(TD2CFM(), LINEAR)
    fixed = batch.backup()
    wanted = TD2CFM().loss(field, field, fixed, batch.noise)
    for term in ("direct", "bootstrap"):
        backup = dataclasses.replace(fixed, condition=fixed.condition.clone().requires_grad_(), latent_term=term)
        torch.testing.assert_close(TD2CFM().loss(field, field, backup, batch.noise), wanted)
