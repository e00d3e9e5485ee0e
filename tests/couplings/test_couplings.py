import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from flowmatch_rl.checks import RunError
from flowmatch_rl.couplings import Coupling, ExactCoupling, IndependentCoupling, SinkhornCoupling
from tests.combinations import each_value, one_test
from tests.families import COUPLINGS
from tests.oracles import normal, rmse, uniform

TRANSPORT = [ExactCoupling(), SinkhornCoupling(regularisation=0.01)]


def samples(batch: int, dims: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Normal noise, and data in two clusters with unequal weights."""
    x_0, x_1 = normal(batch, dims, seed=seed, dtype=dtype), 0.3 * normal(batch, dims, seed=seed + 1, dtype=dtype)
    return x_0, x_1 + torch.where(torch.arange(batch) % 3 == 0, -1.0, 1.5).to(dtype)[:, None]


def costs(x_0: Tensor, x_1: Tensor) -> Tensor:
    """Squared distances, rows the data, by the definition."""
    return (x_1[:, None] - x_0).square().sum(-1)


def total_cost(coupling: Coupling, x_0: Tensor, x_1: Tensor) -> float:
    index = coupling.pair(x_0, x_1, uniform(len(x_1), seed=9))
    return (x_1 - x_0[index]).square().sum().item()


def is_permutation(index: Tensor) -> bool:
    return torch.equal(index.sort().values, torch.arange(len(index)))


@each_value
@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 3, 17])
def test_every_data_row_gets_a_row_of_the_noise(coupling: Coupling, dtype: torch.dtype, batch: int) -> None:
    x_0, x_1 = samples(batch, 3, dtype=dtype)
    for condition in (None, normal(batch, 3, seed=4, dtype=dtype)):
        index = coupling.pair(x_0, x_1, uniform(batch, seed=5, dtype=dtype), condition)
        assert index.shape == (batch,)
        assert index.dtype == torch.int64
        assert index.amin() >= 0
        assert index.amax() < batch
        assert x_0[index].shape == x_1.shape


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_equal_points_and_equal_uniforms_are_no_difficulty(coupling: Coupling) -> None:
    x = torch.ones(4, 2)
    assert coupling.pair(x, x, torch.zeros(4)).shape == (4,)
    assert coupling.pair(x, 2.0 * x, torch.full((4,), 1.0 - 2.0**-24)).amax() < 4


def test_the_independent_coupling_leaves_everything_in_place() -> None:
    x_0, x_1 = samples(7, 2)
    assert IndependentCoupling().pair(x_0, x_1, uniform(7, seed=1)).tolist() == list(range(7))


@each_value
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_exact_coupling_is_the_best_of_all_permutations(seed: int, dims: int) -> None:
    x_0, x_1 = samples(5, dims, seed=seed)
    cost = costs(x_0, x_1)
    best = min(itertools.permutations(range(5)), key=lambda p: sum(cost[i, j].item() for i, j in enumerate(p)))
    assert ExactCoupling().pair(x_0, x_1, uniform(5, seed=1)).tolist() == list(best)


def test_on_the_line_the_exact_coupling_sorts() -> None:
    x_0, x_1 = samples(300, 1)
    index = ExactCoupling().pair(x_0, x_1, uniform(300, seed=1))
    assert torch.equal(x_0[index][x_1[:, 0].argsort(), 0], x_0[:, 0].sort().values)


@pytest.mark.parametrize(("batch", "dims"), [(2, 2), (64, 2), (64, 64), (200, 3)])
def test_the_exact_coupling_is_a_permutation_and_no_dearer_than_the_independent_one(batch: int, dims: int) -> None:
    x_0, x_1 = samples(batch, dims)
    assert is_permutation(ExactCoupling().pair(x_0, x_1, uniform(batch, seed=1)))
    assert total_cost(ExactCoupling(), x_0, x_1) <= total_cost(IndependentCoupling(), x_0, x_1)


def test_the_exact_coupling_pays_what_a_network_simplex_pays() -> None:
    import ot

    x_0, x_1 = samples(120, 2)
    weight = np.full(120, 1.0 / 120)
    simplex = ot.emd2(weight, weight, costs(x_0, x_1).numpy(), numItermax=10**6)
    assert total_cost(ExactCoupling(), x_0, x_1) / 120 == pytest.approx(simplex, rel=1e-9)


def test_the_order_of_the_noise_does_not_matter() -> None:
    x_0, x_1 = samples(40, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    u = uniform(40, seed=1)
    torch.testing.assert_close(
        x_0[order][ExactCoupling().pair(x_0[order], x_1, u)], x_0[ExactCoupling().pair(x_0, x_1, u)]
    )
    plan = SinkhornCoupling(tolerance=1e-8).plan
    torch.testing.assert_close(plan(x_0[order], x_1), plan(x_0, x_1)[:, order], rtol=1e-6, atol=1e-12)


@each_value
@pytest.mark.parametrize("coupling", TRANSPORT, ids=repr)
@pytest.mark.parametrize("change", [lambda x: x + 3e4, lambda x: 1e-3 * x, lambda x: 1e4 * x])
def test_neither_units_nor_a_far_origin_change_the_pairing(coupling: Coupling, change) -> None:
    x_0, x_1 = (x.round(decimals=2).float() for x in samples(50, 2))
    u = uniform(50, seed=1)
    moved = coupling.pair(change(x_0.double()), change(x_1.double()), u)
    assert torch.equal(moved, coupling.pair(x_0, x_1, u))


@pytest.mark.parametrize(("regularisation", "tolerance"), [(3.0, 1e-6), (0.1, 1e-6), (0.02, 1e-4), (0.002, 1e-2)])
def test_the_entropic_plan_has_uniform_marginals_and_the_form_of_its_optimum(
    regularisation: float, tolerance: float
) -> None:
    x_0, x_1 = samples(30, 2)
    plan = SinkhornCoupling(regularisation, tolerance=tolerance, num_iterations=10_000).plan(x_0, x_1)
    for dim in (0, 1):
        assert rmse(plan.sum(dim) * 30 - 1.0) < 1.02 * tolerance
    # The optimum is a kernel of the cost with a factor per row and per column: every 2 x 2 minor says so.
    cost = costs(x_0 - x_0.mean(0), x_1 - x_1.mean(0))
    strength = regularisation * cost.mean()
    minor = cost[:-1, :-1] + cost[1:, 1:] - cost[:-1, 1:] - cost[1:, :-1]
    log_plan = torch.where(plan > 1e-280, plan.log(), math.nan)
    found = log_plan[:-1, :-1] + log_plan[1:, 1:] - log_plan[:-1, 1:] - log_plan[1:, :-1]
    seen = found.isfinite()
    assert seen.any()
    torch.testing.assert_close(found[seen], -(minor / strength)[seen], rtol=1e-6, atol=1e-6)


def test_weak_regularisation_approaches_the_exact_coupling_and_strong_the_independent_one() -> None:
    x_0, x_1 = samples(30, 2)
    cost = costs(x_0, x_1)
    exact = total_cost(ExactCoupling(), x_0, x_1) / 30

    def excess(regularisation: float) -> float:
        coupling = SinkhornCoupling(regularisation=regularisation, tolerance=1e-4, num_iterations=100_000)
        return (coupling.plan(x_0, x_1) * cost).sum().item() / exact - 1.0

    gaps = [excess(regularisation) for regularisation in (0.3, 0.1, 0.03, 0.01, 0.001)]
    assert gaps == sorted(gaps, reverse=True)
    assert -1e-3 < gaps[-1] < 5e-3
    strong = SinkhornCoupling(regularisation=1e4, tolerance=1e-4).plan(x_0, x_1)
    torch.testing.assert_close(strong * 900, torch.ones(30, 30, dtype=torch.float64), rtol=0.0, atol=2e-3)


def test_drawn_rows_follow_the_plan() -> None:
    x_0, x_1 = samples(6, 2)
    coupling = SinkhornCoupling(regularisation=0.3)
    expected = coupling.plan(x_0, x_1)
    draws = 1500
    expected = draws * expected / expected.sum(1, keepdim=True)
    counts = torch.zeros(6, 6, dtype=torch.float64)
    for u in uniform(draws, 6, seed=3):
        counts[torch.arange(6), coupling.pair(x_0, x_1, u)] += 1.0
    likely = expected > 5.0
    assert likely.sum() > 15
    statistic = ((counts - expected).square() / expected)[likely].sum().item()
    assert statistic < chi2.ppf(0.9999, df=int(likely.sum()))


def test_a_draw_is_the_inverse_of_the_distribution_function() -> None:
    x_0, x_1 = samples(5, 2)
    coupling = SinkhornCoupling(regularisation=0.5)
    plan = coupling.plan(x_0, x_1)
    cumulative = (plan / plan.sum(1, keepdim=True)).cumsum(1)
    for k in range(5):
        middle = cumulative[:, k] - 0.5 * plan[:, k] / plan.sum(1)
        assert torch.equal(coupling.pair(x_0, x_1, middle), torch.full((5,), k))


@each_value
@pytest.mark.parametrize("weight", [math.inf, 1e6], ids=str)
@pytest.mark.parametrize("regularisation", [None, 0.01, 0.1])
def test_noise_stays_within_its_class_when_conditions_weigh_much(weight: float, regularisation: float | None) -> None:
    x_0, x_1 = samples(90, 2)
    label = torch.arange(90) % 4
    condition = torch.nn.functional.one_hot(label, 4).double()
    if regularisation is None:
        coupling: Coupling = ExactCoupling(condition_weight=weight)
    else:
        coupling = SinkhornCoupling(regularisation, condition_weight=weight)
    for u in [*uniform(20, 90, seed=1), torch.zeros(90), torch.full((90,), 1.0 - 2.0**-53, dtype=torch.float64)]:
        index = coupling.pair(x_0, x_1, u, condition)
        assert torch.equal(label[index], label)
    if regularisation is None:
        assert is_permutation(index)
        for k in range(4):
            rows = (label == k).nonzero()[:, 0]
            alone = ExactCoupling().pair(x_0[rows], x_1[rows], u[rows])
            torch.testing.assert_close(x_0[index[rows]], x_0[rows][alone])
    else:
        plan = coupling.plan(x_0, x_1, condition)
        assert (plan[label[:, None] != label] == 0.0).all()


def test_pairing_across_classes_biases_the_noise_and_the_default_does_not() -> None:
    x_0, x_1 = samples(600, 1)
    low = x_1[:, 0] < 0.0
    condition = low.double()[:, None]
    biased = ExactCoupling(condition_weight=0.0).pair(x_0, x_1, uniform(600, seed=1), condition)
    assert x_0[biased][low].mean() < -0.8
    assert torch.equal(biased, ExactCoupling().pair(x_0, x_1, uniform(600, seed=1)))
    safe = ExactCoupling().pair(x_0, x_1, uniform(600, seed=1), condition)
    assert x_0[safe][low].mean().abs() < 4.0 / math.sqrt(low.sum().item())


def test_unequal_continuous_conditions_leave_the_coupling_independent_and_a_finite_weight_does_not() -> None:
    x_0, x_1 = samples(30, 2)
    condition = normal(30, 1, seed=3)
    for coupling in TRANSPORT:
        index = coupling.pair(x_0, x_1, uniform(30, seed=1), condition)
        assert index.tolist() == list(range(30))

    def mean_condition_gap(weight: float) -> float:
        index = ExactCoupling(condition_weight=weight).pair(x_0, x_1, uniform(30, seed=1), condition)
        return (condition[index] - condition).square().mean().item()

    gaps = [mean_condition_gap(weight) for weight in (0.0, 1.0, 100.0)]
    assert gaps[0] > gaps[1] > gaps[2] > 0.0


def test_the_finite_weight_enters_the_cost_as_documented() -> None:
    x_0, x_1 = samples(5, 2)
    condition = normal(5, 3, seed=3)
    cost = costs(x_0, x_1) + 0.7 * costs(condition, condition)
    best = min(itertools.permutations(range(5)), key=lambda p: sum(cost[i, j].item() for i, j in enumerate(p)))
    index = ExactCoupling(condition_weight=0.7).pair(x_0, x_1, uniform(5, seed=1), condition)
    assert index.tolist() == list(best)


@pytest.mark.parametrize("regularisation", [0.01, 0.1, 1.0])
def test_outliers_do_no_harm(regularisation: float) -> None:
    x_0, x_1 = samples(300, 1)
    for noise, data in [(1e4, 0.0), (0.0, 1e4), (1e4, -1e4)]:
        far_0, far_1 = x_0.clone(), x_1.clone()
        far_0[7] += noise
        far_1[11] += data
        index = ExactCoupling().pair(far_0, far_1, uniform(300, seed=1))
        assert torch.equal(far_0[index][far_1[:, 0].argsort(), 0], far_0[:, 0].sort().values)
        plan = SinkhornCoupling(regularisation).plan(far_0, far_1)
        assert rmse(plan.sum(0) * 300 - 1.0) < 0.0102


@pytest.mark.parametrize("regularisation", [1e-3, 1e-5])
def test_sweeps_that_do_not_converge_are_an_error(regularisation: float) -> None:
    x_0, x_1 = samples(40, 2)
    with pytest.raises(RunError, match=r"did not converge.*within 2 iterations"):
        SinkhornCoupling(regularisation, tolerance=1e-6, num_iterations=2).pair(x_0, x_1, uniform(40, seed=1))


@one_test
@pytest.mark.parametrize("coupling", TRANSPORT, ids=repr)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(coupling: Coupling, bad: float) -> None:
    x = normal(4, 2, seed=1)
    broken = x.clone()
    broken[1, 0] = bad
    u = uniform(4, seed=1)
    for x_0, x_1, condition in [(broken, x, None), (x, broken, None), (x, x, broken)]:
        with pytest.raises(ValueError, match="finite"):
            coupling.pair(x_0, x_1, u, condition)


@one_test
@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
@pytest.mark.parametrize(
    ("x_0", "x_1", "u", "condition", "named"),
    [
        ((4, 2), (5, 2), (5,), None, "x_1 (5, 2)"),
        ((5, 3), (5, 2), (5,), None, "x_0 (5, 3)"),
        ((5,), (5,), (5,), None, "(5,)"),
        ((0, 2), (0, 2), (0,), None, "(0, 2)"),
        ((5, 2), (5, 2), (5, 1), None, "(5, 1)"),
        ((5, 2), (5, 2), (5,), (4, 1), "(4, 1)"),
        ((5, 2), (5, 2), (5,), (5,), "(5, C), got (5,)"),
    ],
)
def test_wrong_shapes_are_refused_and_named(coupling: Coupling, x_0, x_1, u, condition, named: str) -> None:
    with pytest.raises(ValueError) as caught:
        coupling.pair(
            torch.zeros(x_0), torch.zeros(x_1), torch.zeros(u), None if condition is None else torch.zeros(condition)
        )
    assert named in str(caught.value)


@one_test
@pytest.mark.parametrize(
    "arguments",
    [
        {"regularisation": 0.0},
        {"regularisation": math.nan},
        {"tolerance": 0.0},
        {"num_iterations": 0},
        {"condition_weight": -1.0},
        {"condition_weight": math.nan},
    ],
    ids=repr,
)
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        SinkhornCoupling(**arguments)
    if name == "condition_weight":
        with pytest.raises(ValueError, match=name):
            ExactCoupling(**arguments)


def test_no_gradient_and_no_reduced_precision_enters_the_pairing() -> None:
    x_0, x_1 = samples(40, 2, dtype=torch.float32)
    u = uniform(40, seed=1)
    for coupling in TRANSPORT:
        plain = coupling.pair(x_0, x_1, u)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(coupling.pair(x_0.clone().requires_grad_(), x_1, u), plain)
