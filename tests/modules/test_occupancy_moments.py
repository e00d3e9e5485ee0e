"""Every backup of an occupancy leaves the exact field where it is.

At the exact field the expected gradient of a right loss is zero in the direction of every test function. Means over
samples are compared with their standard errors: right backups lie within 4, wrong ones beyond 6.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import Segment
from flowmatch_rl.models import Horizon, Occupancy
from flowmatch_rl.modules.occupancy_backups import BackupMaker
from flowmatch_rl.objectives import (
    TD2CFM,
    TD2DD,
    TDCFM,
    TDDD,
    Backup,
    BackupNoise,
    BiasedChordCFM,
    CoupledTDCFM,
    MonteCarloCFM,
    OccupancyObjective,
    backup_weights,
)
from flowmatch_rl.paths import AffinePath, CosineSchedule, Field, VariancePreservingSchedule
from flowmatch_rl.samplers import DdimSampler, OdeSampler
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy
from tests import exact_occupancy as exact
from tests.exact_occupancy import KnownTermination, exact_occupancy, gradients, largest_z_score, noise_of
from tests.oracles import normal, uniform

SIZE = 8_000
RIGHT, WRONG = 4.0, 6.0
LINEAR, COSINE, DIFFUSION = AffinePath(), AffinePath(CosineSchedule()), AffinePath(VariancePreservingSchedule())
SOLVER = Midpoint(num_steps=16)
STEPS_OF_DDIM = 100
"""Of order 1: with 40 steps the bias of re-noised samples is 8 standard errors of 100,000 samples."""


@dataclass(frozen=True)
class Case:
    """What a backup has to deal with.

    Attributes:
        horizon: Discounts and index convention.
        ends: Probability that an arrival is terminal.
        family: Whether the policy is a family.
        num_steps: Observed steps of a segment at most.
        expanded: Steps of an expansion at most, or None for none.
        size: Samples.
    """

    horizon: Horizon = Horizon(0.9)
    ends: float = 0.0
    family: bool = False
    num_steps: int = 1
    expanded: int | None = None
    size: int = SIZE

    def model(self, path: AffinePath = LINEAR, objective: OccupancyObjective = TD2CFM()) -> Occupancy:
        # The state of now has no spread, which a flow time of 1 can't have; noise predictions have no time 0.
        t_min = 0.005 if path is DIFFUSION or self.horizon.first_state == "current" else 0.0
        return exact_occupancy(path, objective.prediction, self.horizon, self.ends, self.family, t_min)

    def segments(self) -> Segment:
        given = exact.segments(self.size, 10, self.num_steps, self.ends, self.family)
        return given if self.expanded is None else exact.expansions(given, self.expanded, self.ends, 20, sometimes)

    def backup(self, model: Occupancy, bootstraps: bool = True, segment: Segment | None = None) -> Backup:
        segment = self.segments() if segment is None else segment
        discount = self.horizon.draw(uniform(self.size, seed=30, dtype=torch.float32))
        if not bootstraps:
            segment = exact.with_futures(segment, discount, self.ends, seed=40)
        torch.manual_seed(50)
        return BackupMaker(model, bootstraps).make(segment, discount)


def sometimes(state: Tensor, action: Tensor, arrival: Tensor, chance: Tensor) -> Tensor:
    """A gate at .5 that closes by chance, and far out more often."""
    return chance * (0.6 + 0.3 * state[:, 0].abs())


NOW = Horizon(0.9, first_state="current")
CASES = {
    "arrival": Case(),
    "current": Case(NOW),
    "terminations": Case(ends=0.1),
    "three steps": Case(Horizon(0.6), ends=0.1, num_steps=3),
    "three steps, current": Case(Horizon(0.6, first_state="current"), ends=0.1, num_steps=3),
    "expanded": Case(ends=0.1, expanded=4),
    "expanded, current": Case(NOW, ends=0.1, expanded=4),
    "family": Case(family=True),
    "expanded family": Case(family=True, expanded=4),
    "many horizons": Case(Horizon(0.9, 0.4), ends=0.1),
    "many horizons, current": Case(Horizon(0.9, 0.4, first_state="current"), ends=0.1, expanded=3),
    "consistency": Case(Horizon(0.9, 0.4, consistency=0.7), ends=0.1),
    "everything": Case(Horizon(0.9, 0.4, consistency=0.7), ends=0.1, family=True, expanded=4),
}
SOME = ["terminations", "three steps, current", "expanded family", "many horizons, current", "everything"]
"""Cases in which everything occurs that the others hold one by one."""

OBJECTIVES: dict[str, tuple[OccupancyObjective, AffinePath]] = {
    "MonteCarloCFM": (MonteCarloCFM(), LINEAR),
    "TDCFM": (TDCFM(solver=SOLVER), LINEAR),
    "TD2CFM": (TD2CFM(solver=SOLVER), LINEAR),
    "TD2CFM, a coin": (TD2CFM(solver=SOLVER, mixing="bernoulli"), COSINE),
    "TDDD": (TDDD(sampler=DdimSampler(STEPS_OF_DDIM)), DIFFUSION),
    "TD2DD": (TD2DD(sampler=DdimSampler(STEPS_OF_DDIM // 2)), DIFFUSION),
}


def z_score(objective: OccupancyObjective, model: Occupancy, backup: Backup) -> float:
    interval = model.flow.interval
    return largest_z_score(
        gradients(objective, model.flow.field(), backup, noise_of(len(backup.state), 60, interval), interval)
    )


def test_the_exact_field_is_that_of_the_linear_gaussian_process() -> None:
    process = LinearGaussianProcess([[exact.KEPT]], [[exact.PUSH]], noise_factor=[[exact.NOISE]])
    policy = LinearPolicy([[exact.GAIN]], [exact.BIAS])
    scale, shift = exact.SCHEMA.scale[0], exact.SCHEMA.shift[0]
    state, action, x, t = normal(50, 1, seed=1), normal(50, 1, seed=2), normal(50, 1, seed=3), uniform(50, seed=4)
    found = Case().model().flow.field().predict(x, t, torch.cat([(state - shift) / scale, action], 1))
    mixture = process.occupancy(state, action, policy, 0.9)
    standard = replace(mixture, means=(mixture.means - shift) / scale, variances=mixture.variances / scale**2)
    torch.testing.assert_close(found, standard.field(LINEAR)(x, t, None), rtol=0, atol=5e-4, check_dtype=False)


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in OBJECTIVES for case in (CASES if name in ("TDCFM", "TD2CFM") else SOME)],
)
def test_the_expected_gradient_vanishes_at_the_exact_field(name: str, case: str) -> None:
    (objective, path), given = OBJECTIVES[name], CASES[case]
    model = given.model(path, objective)
    assert z_score(objective, model, given.backup(model, objective.bootstraps)) < RIGHT


def weights_of_another_convention(backup: Backup, segment: Segment) -> Backup:
    """Weights as if the current state counted, in a model of arrival states."""
    discount = torch.full((SIZE,), 0.9)
    weights, _ = backup_weights(discount, segment.terminated, segment.length, "current")
    current = (segment.observation - exact.SCHEMA.shift[0]) / exact.SCHEMA.scale[0]
    return replace(backup, state=torch.where(weights[:, :1] > 0.0, current, backup.state))


def lighter_bootstrap(backup: Backup, segment: Segment) -> Backup:
    """A discount of .8 in a model of .9."""
    one = torch.ones(SIZE)
    return replace(backup, state_weight=0.2 * one, next_weight=0.8 * one)


def stale_bootstrap(backup: Backup, segment: Segment) -> Backup:
    """The occupancy of the state left in place of that arrived in."""
    return replace(backup, next_condition=backup.condition)


@pytest.mark.parametrize("mistake", [weights_of_another_convention, lighter_bootstrap, stale_bootstrap])
def test_a_wrong_weight_leaves_a_gradient(mistake: Callable[[Backup, Segment], Backup]) -> None:
    case = Case()
    model, segment = case.model(), case.segments()
    assert z_score(TD2CFM(solver=SOLVER), model, mistake(case.backup(model, segment=segment), segment)) > WRONG


def overlooked_ends(case: Case) -> Segment:
    """Terminal states that are taken for others."""
    segment = case.segments()
    return replace(segment, terminated=torch.zeros_like(segment.terminated))


def steps_of_another_policy(case: Case) -> Segment:
    """Later steps that the modelled member did not take."""
    segment = case.segments()
    return replace(segment, embedding=segment.embedding.flip(0))


def mean_steps(case: Case) -> Segment:
    """A model that replaces the noise of the process by its mean."""

    def sure(state: Tensor, action: Tensor, arrival: Tensor, chance: Tensor) -> Tensor:
        return 0.0 * chance

    return exact.expansions(exact.segments(case.size, 10), 12, case.ends, 20, sure, noise=0.0)


def gate_at_the_arrival(case: Case) -> Segment:
    """A gate that sees where the step that it decides on has led."""

    def high(state: Tensor, action: Tensor, arrival: Tensor, chance: Tensor) -> Tensor:
        return (arrival[:, 0] > 1.2).float()

    return exact.expansions(exact.segments(SIZE, 10), 8, case.ends, 20, high)


@pytest.mark.parametrize(
    ("mistake", "case"),
    [
        (overlooked_ends, Case(ends=0.1)),
        (overlooked_ends, Case(NOW, ends=0.1, expanded=4)),
        (steps_of_another_policy, Case(family=True, num_steps=3)),
        (mean_steps, Case(size=2 * SIZE)),
        (gate_at_the_arrival, Case()),
    ],
)
def test_wrong_segments_leave_a_gradient(mistake: Callable[[Case], Segment], case: Case) -> None:
    model = case.model()
    assert z_score(TD2CFM(solver=SOLVER), model, case.backup(model, segment=mistake(case))) > WRONG


def test_resuming_in_terminal_states_of_a_shorter_horizon_leaves_a_gradient() -> None:
    case = Case(Horizon(0.95, 0.6, consistency=1.0), ends=0.1, size=2 * SIZE)
    model = case.model()
    assert z_score(TD2CFM(solver=SOLVER), model, case.backup(model)) < RIGHT
    model.termination = KnownTermination(0.0)
    assert z_score(TD2CFM(solver=SOLVER), model, case.backup(model)) > WRONG


@dataclass(frozen=True)
class Chord(OccupancyObjective):
    """Points on the chord between a bootstrapped sample and noise, with the EMA flow's velocity there.

    Args:
        fresh: Whether the noise is fresh, and not the one that the sample was made from.
    """

    prediction = "velocity"
    bootstraps = True

    fresh: bool = True

    def bootstrap(self, field: Field, noise: BackupNoise, interval: tuple[float, float]) -> tuple[Tensor, Tensor]:
        x_1 = OdeSampler(SOLVER).sample(field, noise.start, *interval, torch.zeros_like)
        x_t = field.path.sample(noise.fresh if self.fresh else noise.start, x_1, noise.t_bootstrap)
        return x_t, field.predict(x_t, noise.t_bootstrap, None)


BIASED = BiasedChordCFM(solver=SOLVER)


@pytest.mark.parametrize("path", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_marginal_velocities_belong_to_points_between_independent_ends(path: AffinePath) -> None:
    """A sample and its own noise have the right distribution at the ends of the path only."""
    case = Case()
    model = case.model(path)
    backup = case.backup(model)
    assert z_score(Chord(fresh=True), model, backup) < RIGHT
    assert z_score(BIASED, model, backup) > WRONG


def test_the_published_estimator_is_not_biased_by_the_noise_that_its_terms_share() -> None:
    case = Case()
    model = case.model()
    backup, noise = case.backup(model), noise_of(SIZE, 60)
    shared = replace(noise, start=noise.direct, t_bootstrap=noise.t_direct)
    field = model.flow.field()
    assert largest_z_score(gradients(TD2CFM(solver=SOLVER), field, backup, shared)) < RIGHT
    assert largest_z_score(gradients(Chord(fresh=False), field, backup, noise)) > WRONG


def end_of_the_path(objective: OccupancyObjective, case: Case) -> Tensor:
    """What points and targets of a backup carry from noise to data, minus what is exact, for three functions.

    By the continuity equation velocities u at points x_t lead to samples X with
    ``E f(X) = E f(noise) + integral of E f'(x_t) u``, here for x, x^2 / 2 and -cos(3 x) / 3, shape (B, 3).
    """
    model = case.model()
    backup = case.backup(model)
    field, network = model.flow.field(), model.flow.network
    assert isinstance(network, exact.ExactNetwork)
    carried = -0.5 * gradients(objective, field, backup, noise_of(SIZE, 60), at_zero=True)[:, [0, 1, 4]]
    logs, means, variances = network.mixture(backup.condition)
    damped = torch.exp(-4.5 * variances) * torch.cos(3.0 * means) / -3.0
    known = torch.stack([means, 0.5 * (means.square() + variances), damped], -1)
    of_noise = torch.tensor([0.0, 0.5, -torch.exp(torch.tensor(-4.5)) / 3.0])
    return carried - ((logs.exp()[..., None] * known).sum(1) - of_noise)


@pytest.mark.parametrize("case", ["terminations", "three steps", "everything"])
@pytest.mark.parametrize("objective", [CoupledTDCFM, TDCFM, TD2CFM])
def test_a_backup_ends_in_the_occupancy(objective: type[OccupancyObjective], case: str) -> None:
    """All that the coupled objective promises: velocities along its own chords lead to the exact distribution."""
    assert largest_z_score(end_of_the_path(objective(), CASES[case])) < RIGHT


def test_the_coupled_objective_is_off_before_the_end_of_the_path() -> None:
    case = Case()
    model = case.model()
    assert z_score(CoupledTDCFM(solver=SOLVER), model, case.backup(model)) > WRONG


def test_marginal_velocities_on_chords_do_not_end_in_the_occupancy() -> None:
    assert largest_z_score(end_of_the_path(BIASED, Case())) > WRONG
    assert largest_z_score(end_of_the_path(Chord(fresh=True), Case())) < RIGHT
