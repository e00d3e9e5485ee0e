"""Rules for the temperature: schedules, the sign of what is learned, and where it settles."""

import math
from dataclasses import replace

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.objectives import (
    AnnealedTemperature,
    ConstantTemperature,
    DivergenceTemperature,
    EntropyTemperature,
    PolicyState,
    SampleSizeTemperature,
    Temperature,
    temperature_loss,
)
from tests.combinations import one_test
from tests.families import TEMPERATURES

STATE = PolicyState(torch.tensor(-0.5), torch.tensor(0.4), 3, torch.tensor(0.7))
UNKNOWN = PolicyState(None, None, 3)


@pytest.mark.parametrize("rule", TEMPERATURES, ids=repr)
def test_rule_either_schedules_its_temperature_or_learns_it(rule: Temperature) -> None:
    assert rule.initial > 0.0
    learned = rule.scheduled(0) is None
    assert learned == (rule.surplus(STATE) is not None)
    assert learned or rule.scheduled(0) == pytest.approx(rule.initial)
    assert rule.scheduled(10**9) is None or rule.scheduled(10**9) > 0.0
    assert learned or not (rule.needs_entropy or rule.needs_samples or rule.needs_divergence)


@pytest.mark.parametrize("rule", TEMPERATURES, ids=repr)
def test_rule_needs_what_it_says_and_nothing_else(rule: Temperature) -> None:
    told = PolicyState(
        STATE.entropy if rule.needs_entropy else None,
        STATE.effective_samples if rule.needs_samples else None,
        3,
        STATE.divergence if rule.needs_divergence else None,
    )
    rule.surplus(told)
    if rule.needs_entropy or rule.needs_samples or rule.needs_divergence:
        with pytest.raises(ValueError, match="needs a policy"):
            rule.surplus(UNKNOWN)


def test_constant_one_stays() -> None:
    assert [ConstantTemperature(0.3).scheduled(steps) for steps in (0, 1, 10**6)] == [0.3] * 3


@pytest.mark.parametrize(("start", "end"), [(2.0, 0.02), (0.1, 5.0), (0.3, 0.3)])
def test_annealed_one_goes_evenly_in_its_logarithm_and_stays(start, end) -> None:
    rule = AnnealedTemperature(start, end, 200)
    assert rule.initial == start
    assert rule.scheduled(0) == pytest.approx(start)
    assert rule.scheduled(100) == pytest.approx(math.sqrt(start * end))
    assert rule.scheduled(50) == pytest.approx(start**0.75 * end**0.25)
    assert rule.scheduled(200) == rule.scheduled(10**7) == pytest.approx(end)


def test_entropy_above_the_target_is_a_surplus_over_all_dimensions() -> None:
    rule = EntropyTemperature(entropy_per_dimension=-0.5)
    torch.testing.assert_close(rule.surplus(STATE), torch.tensor(-0.5 + 1.5))
    torch.testing.assert_close(rule.surplus(replace(STATE, entropy=torch.tensor(-4.0))), torch.tensor(-2.5))


def test_share_of_the_samples_above_the_target_is_a_surplus() -> None:
    torch.testing.assert_close(SampleSizeTemperature(fraction=0.1).surplus(STATE), torch.tensor(0.3))
    torch.testing.assert_close(SampleSizeTemperature(fraction=0.7).surplus(STATE), torch.tensor(-0.3))


@pytest.mark.parametrize(("surplus", "falls"), [(0.7, True), (-0.7, False)])
def test_loss_lowers_the_temperature_of_a_policy_above_its_target_and_spares_the_policy(surplus, falls) -> None:
    log_temperature = torch.tensor(0.4, requires_grad=True)
    measured = torch.tensor(surplus, requires_grad=True)
    temperature_loss(log_temperature, measured).backward()
    assert measured.grad is None
    torch.testing.assert_close(log_temperature.grad, torch.tensor(surplus))  # descent moves against its sign
    assert (log_temperature.grad > 0.0) == falls


def settle(rule: Temperature, measure) -> float:
    """Temperature after descent on its loss, for a policy that follows at once."""
    log_temperature = torch.tensor(math.log(rule.initial), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_temperature], lr=0.03)
    for _ in range(800):
        optimizer.zero_grad()
        surplus = rule.surplus(measure(log_temperature.detach().exp()))
        assert surplus is not None
        temperature_loss(log_temperature, surplus).backward()
        optimizer.step()
    return float(log_temperature.detach().exp())


@pytest.mark.parametrize("start", [0.01, 20.0])
def test_entropy_settles_at_the_target_where_it_is_known(start) -> None:
    # For Q = -|a|^2 / 2 the Boltzmann law is normal, its variance the temperature.
    def measure(temperature):
        return PolicyState(0.5 * 2 * torch.log(2.0 * math.pi * math.e * temperature), None, 2)

    wanted = math.exp(2.0 * 0.4) / (2.0 * math.pi * math.e)
    assert settle(EntropyTemperature(start, 0.4), measure) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("start", [0.05, 50.0])
def test_sample_size_settles_at_the_target(start) -> None:
    values = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64)

    def share(temperature):
        return 1.0 / torch.softmax(values / temperature, 0).square().sum() / 50

    found = settle(SampleSizeTemperature(start, 0.25), lambda temperature: PolicyState(None, share(temperature), 1))
    assert float(share(torch.tensor(found))) == pytest.approx(0.25, abs=0.003)


@one_test
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ConstantTemperature(0.0), ["temperature", "positive", "0.0"]),
        (lambda: ConstantTemperature(math.inf), ["temperature", "inf"]),
        (lambda: ConstantTemperature(math.nan), ["temperature", "nan"]),
        (lambda: AnnealedTemperature(-1.0, 1.0, 5), ["start", "-1.0"]),
        (lambda: AnnealedTemperature(1.0, 0.0, 5), ["end", "0.0"]),
        (lambda: AnnealedTemperature(1.0, 1.0, 0), ["env_steps", "at least 1", "0"]),
        (lambda: EntropyTemperature(start=0.0), ["start", "0.0"]),
        (lambda: SampleSizeTemperature(start=-2.0), ["start", "-2.0"]),
        (lambda: SampleSizeTemperature(fraction=1.0), ["fraction", "(0, 1)", "1.0"]),
        (lambda: SampleSizeTemperature(fraction=0.0), ["fraction", "(0, 1)", "0.0"]),
    ],
    ids=range(10),
)
def test_numbers_out_of_range_are_refused_by_name_and_value(make, words) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words)


def test_a_divergence_below_its_target_is_a_surplus() -> None:
    rule = DivergenceTemperature(nats=0.5)
    assert float(rule.surplus(PolicyState(None, None, 3, torch.tensor(0.2)))) == pytest.approx(0.3)
    assert float(rule.surplus(PolicyState(None, None, 3, torch.tensor(0.9)))) == pytest.approx(-0.4)
    for wrong in (0.0, 2.1):
        with pytest.raises(UserError, match="nats must"):
            DivergenceTemperature(nats=wrong)
