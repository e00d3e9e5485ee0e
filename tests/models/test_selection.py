import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.models import FirstSelection, GreedySelection, Selection, SoftmaxSelection
from tests.combinations import each_value
from tests.families import SELECTIONS
from tests.oracles import F64, normal, uniform


def chi_square(choice: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic of the choices (count,) against one law (N,)."""
    expected = len(choice) * probabilities
    return ((torch.bincount(choice, minlength=len(expected)) - expected).square() / expected).sum().item()


@each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 20.0])
def test_softmax_picks_match_their_probabilities(temperature: float, dtype: torch.dtype) -> None:
    values = torch.tensor([0.3, -0.2, 0.9, 0.0, 0.5], dtype=dtype)
    noise = uniform(100_000, 5, seed=1, dtype=dtype)
    choice = SoftmaxSelection().choose(values.expand(100_000, 5), temperature, noise)
    # Four degrees of freedom: above 23.5 once in ten thousand draws.
    assert chi_square(choice, torch.softmax(values.double() / temperature, 0)) < 23.5


def test_softmax_picks_of_neighbouring_states_are_independent_of_each_other_and_of_the_offset() -> None:
    values = torch.tensor([[0.0, 1.0], [1e6, 1e6 - 1.0]], dtype=F64).repeat(50_000, 1)
    choice = SoftmaxSelection().choose(values, 1.0, uniform(100_000, 2, seed=2)).reshape(-1, 2)
    high = torch.sigmoid(torch.ones((), dtype=F64))
    joint = torch.stack([(1 - high) * high, (1 - high) ** 2, high**2, high * (1 - high)])
    assert chi_square(2 * choice[:, 0] + choice[:, 1], joint) < 21.1


def test_softmax_at_low_temperature_is_greedy() -> None:
    values, noise = normal(500, 7, seed=1), uniform(500, 7, seed=2)
    greedy = GreedySelection().choose(values, 1.0, noise)
    assert torch.equal(greedy, values.max(dim=1).indices)
    assert torch.equal(SoftmaxSelection().choose(values, 1e-9, noise), greedy)
    assert not torch.equal(SoftmaxSelection().choose(values, 1.0, noise), greedy)


def test_softmax_at_high_temperature_is_uniform() -> None:
    values = normal(1, 4, seed=1).expand(40_000, 4)
    choice = SoftmaxSelection().choose(values, 1e9, uniform(40_000, 4, seed=2))
    assert chi_square(choice, torch.full((4,), 0.25, dtype=F64)) < 21.1


def test_a_temperature_tensor_equals_the_number() -> None:
    values, noise = normal(50, 7, seed=1), uniform(50, 7, seed=2)
    number = SoftmaxSelection().choose(values, 0.4, noise)
    assert torch.equal(SoftmaxSelection().choose(values, torch.tensor(0.4, dtype=F64), noise), number)


def test_the_first_particle_needs_no_values() -> None:
    assert not FirstSelection.needs_values
    assert GreedySelection.needs_values
    assert SoftmaxSelection.needs_values
    assert torch.equal(FirstSelection().choose(normal(3, 4, seed=1), 1.0, uniform(3, 4, seed=2)), torch.zeros(3).long())


@each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("batch", "particles"), [(1, 1), (3, 3), (4, 1), (1, 5)])
@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_choice_is_one_index_per_state_whatever_the_noise(
    selection: Selection, batch: int, particles: int, dtype: torch.dtype
) -> None:
    values = 1e5 * normal(batch, particles, seed=1, dtype=dtype)
    for noise in (
        torch.zeros_like(values),
        torch.full_like(values, 1.0 - 2.0**-24),
        uniform(batch, particles, seed=2, dtype=dtype),
    ):
        choice = selection.choose(values, 0.02, noise)
        assert choice.shape == (batch,)
        assert choice.dtype == torch.long
        assert ((choice >= 0) & (choice < particles)).all()


@pytest.mark.parametrize("noise", [0.0, 1.0 - 2.0**-24])
def test_extreme_noise_does_not_hide_a_better_particle_of_equal_noise(noise: float) -> None:
    values = torch.tensor([[0.0, 1.0, 0.5]])
    assert SoftmaxSelection().choose(values, 1.0, torch.full_like(values, noise)).item() == 1


def chosen_share(selection: Selection, num_particles: int, probability: float = 0.75) -> float:
    """How often the better of two modes is chosen among particles of a policy that is exact at temperature 1."""
    better = uniform(200_000, num_particles, seed=1) < probability
    values = better.double() * math.log(probability / (1.0 - probability))
    index = selection.choose(values, 1.0, uniform(200_000, num_particles, seed=2))
    return better.gather(1, index[:, None]).double().mean().item()


def test_softmax_among_particles_of_an_exact_policy_acts_at_about_half_its_temperature() -> None:
    """Of modes .75 and .25, k of eight particles lie in the first, chosen with probability 3 k / (3 k + 8 - k)."""
    shares = [math.comb(8, k) * 0.75**k * 0.25 ** (8 - k) * 3 * k / (3 * k + 8 - k) for k in range(9)]
    exact = sum(shares)
    assert exact == pytest.approx(0.89, abs=0.005)
    assert chosen_share(SoftmaxSelection(), 8) == pytest.approx(exact, abs=0.004)


def test_the_first_particle_acts_at_the_temperature_itself() -> None:
    assert chosen_share(FirstSelection(), 8) == pytest.approx(0.75, abs=0.004)
    assert chosen_share(SoftmaxSelection(), 1) == pytest.approx(0.75, abs=0.004)


@pytest.mark.parametrize("num_particles", [1, 2, 8, 32])
def test_the_temperature_that_softmax_acts_at_is_the_stated_one(num_particles: int) -> None:
    """Exact for small differences of value: the logarithm of the odds of two modes grows by its inverse."""
    odds = 1e-3
    count = torch.arange(num_particles + 1, dtype=F64)
    probability = torch.sigmoid(torch.tensor(odds, dtype=F64))
    binomial = torch.distributions.Binomial(num_particles, probability, validate_args=False).log_prob(count).exp()
    weight = math.exp(odds) * count
    chosen = (binomial * weight / (weight + num_particles - count)).sum()
    assert odds / float(torch.logit(chosen)) == pytest.approx(
        SoftmaxSelection().temperature_factor(num_particles), rel=1e-3
    )


def test_choices_say_what_they_do() -> None:
    said = "by softmax among 8 particles, at about 0.53 of the temperature"
    assert SoftmaxSelection().description(8) == said
    assert GreedySelection().description(32) == "by the best of 32 particles"
    assert FirstSelection().description(8) == "by a sample of the policy, at the temperature"
    assert {selection.description(1) for selection in SELECTIONS} == {FirstSelection().description(8)}
