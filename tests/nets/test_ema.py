"""EMA networks."""

import math

import pytest
import torch

from flowmatch_rl.nets import CriticArchitecture, EmaSettings, ema_copy, update_ema, warmed_up_decay


def pair():
    torch.manual_seed(0)
    network = CriticArchitecture(hidden_dim=8).build(3, 2).double()
    copy = ema_copy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    return network, copy


def test_copy_starts_equal_requires_no_gradient_and_shares_no_memory() -> None:
    network = CriticArchitecture(hidden_dim=8).build(3, 2)
    copy = ema_copy(network)
    assert not copy.training
    for mine, its in zip(copy.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, its)
        assert mine.data_ptr() != its.data_ptr()
        assert its.requires_grad
        assert not mine.requires_grad


@pytest.mark.parametrize("ema_decay", [0.0, 0.3, 0.995, 1.0])
def test_update_is_the_weighted_mean_of_both_and_leaves_the_network_alone(ema_decay) -> None:
    network, copy = pair()
    before = [p.clone() for p in copy.parameters()]
    network_before = [p.detach().clone() for p in network.parameters()]
    update_ema(copy, network, ema_decay)
    for old, new, its, its_before in zip(before, copy.parameters(), network.parameters(), network_before, strict=True):
        torch.testing.assert_close(new, ema_decay * old + (1.0 - ema_decay) * its_before)
        assert torch.equal(its, its_before)
        assert not new.requires_grad


def test_decay_zero_copies_and_decay_one_changes_nothing_to_the_last_bit() -> None:
    network, copy = pair()
    before = [p.clone() for p in copy.parameters()]
    update_ema(copy, network, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, copy.parameters(), strict=True))
    update_ema(copy, network, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize("ema_decay", [0.0, 0.5, 0.999])
def test_warmed_up_decay_rises_from_a_tenth_to_its_limit(ema_decay: float) -> None:
    decays = [warmed_up_decay(ema_decay, updates) for updates in range(20_000)]
    assert decays[0] == min(ema_decay, 0.1)
    assert decays == sorted(decays)
    assert decays[-1] == ema_decay


def test_warmed_up_ema_network_averages_polynomially_and_forgets_its_initial_weights() -> None:
    # With decay (1 + n) / (10 + n), weights of 0 that follow a network of weights 1 keep Gamma(n + 1) / Gamma(n + 10)
    # times Gamma(10) of their distance after n updates: below 1e-10 after 100, where a decay of 0.999 keeps 0.9.
    remaining = math.prod(warmed_up_decay(0.999, updates) for updates in range(100))
    expected = math.exp(math.lgamma(101) + math.lgamma(10) - math.lgamma(110))
    assert remaining == pytest.approx(expected, rel=1e-12)
    assert remaining < 1e-10


@pytest.mark.parametrize("warm_up", [False, True])
def test_a_move_makes_up_for_the_updates_since_the_last_one(warm_up: bool) -> None:
    network, copy = pair()
    wanted = ema_copy(copy)
    update_ema(wanted, network, (11 / 20 if warm_up else 0.9) ** 4)
    EmaSettings(0.9, warm_up=warm_up).update(copy, network, step=10, updates=4)
    for found, expected in zip(copy.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("option", "message"), [({"decay": 1.0}, r"decay must lie in \[0, 1\)"), ({"interval": 0}, "interval")]
)
def test_settings_out_of_range_are_refused(option, message) -> None:
    with pytest.raises(ValueError, match=message):
        EmaSettings(**option)
