"""A tilted mixture against quadrature and autograd."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.testbeds import TiltedMixture
from tests.combinations import each_value
from tests.oracles import F64, normal, uniform

PLANE = TiltedMixture()
LINE = TiltedMixture((0.2, 0.5, 0.3), ((-0.5,), (0.1,), (0.6,)), (0.1, 0.3, 0.2), peak=(-0.2,), curvature=1.5)
PROBLEMS = [PLANE, LINE, TiltedMixture(curvature=0.0)]


def grid(problem: TiltedMixture) -> tuple[Tensor, float]:
    """Points of a grid that holds all the mass, shape (G, D), and the volume of its cells."""
    line = torch.linspace(-2.0, 2.0, 401, dtype=F64)
    return torch.cartesian_prod(*[line] * len(problem.peak)).reshape(-1, len(problem.peak)), 0.01 ** len(problem.peak)


@each_value
@pytest.mark.parametrize("problem", PROBLEMS, ids=["plane", "line", "flat"])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_the_tilted_distribution_and_its_divergence_are_those_of_quadrature(
    problem: TiltedMixture, temperature: float
) -> None:
    points, volume = grid(problem)
    before = problem.behavior.log_prob(points)
    log_density = before + problem.value_and_gradient(points)[0] / temperature
    log_density = log_density - (log_density.exp().sum() * volume).log()
    torch.testing.assert_close(problem.tilted(temperature).log_prob(points), log_density, rtol=1e-9, atol=1e-9)
    divergence = float((log_density.exp() * (log_density - before)).sum() * volume)
    assert problem.divergence(temperature) == pytest.approx(divergence, rel=1e-8, abs=1e-9)


def test_the_gradient_of_the_value_is_that_of_autograd() -> None:
    actions = normal(4, 3, 2, seed=1).requires_grad_()
    value, gradient = PLANE.value_and_gradient(actions)
    assert value.shape == (4, 3)
    torch.testing.assert_close(gradient, torch.autograd.grad(value.sum(), actions)[0])
    single = PLANE.value_and_gradient(actions.detach().float())
    assert {x.dtype for x in single} == {torch.float32}
    assert float(PLANE.value_and_gradient(torch.tensor(PLANE.peak))[0]) == 0.0


def test_nearly_all_actions_of_the_default_behavior_lie_in_the_box() -> None:
    actions = PLANE.behavior.draw(uniform(100_000, seed=1), normal(100_000, 2, seed=2))
    outside = (actions.abs() > 1.0).any(1)
    assert outside.sum() <= 20


def test_a_problem_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"peak must have 2 entries as means have, got \(0\.1,\)"):
        TiltedMixture(peak=(0.1,))
    with pytest.raises(ValueError, match=r"curvature must .*got -1"):
        TiltedMixture(curvature=-1.0)
    with pytest.raises(ValueError, match=r"temperature must .*got 0"):
        PLANE.tilted(0.0)
