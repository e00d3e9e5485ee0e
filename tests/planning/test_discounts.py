"""Discounts between two horizons, and terminal states among draws of them."""

import pytest
import torch

from flowmatch_rl.planning import discounts_between, terminal_fraction
from tests.oracles import F64


def test_horizons_are_geometrically_spaced() -> None:
    fraction = torch.linspace(0.0, 1.0, 5, dtype=F64)
    horizons = 1.0 / (1.0 - discounts_between(0.9, torch.full_like(fraction, 0.999), fraction))
    torch.testing.assert_close(horizons, torch.tensor([1e1, 10**1.5, 1e2, 10**2.5, 1e3], dtype=F64))


def test_numbers_and_tensors_agree() -> None:
    high, fraction = torch.tensor([0.5, 0.9, 0.99], dtype=F64), torch.tensor([0.1, 0.7, 0.3], dtype=F64)
    pairs = zip(high.tolist(), fraction.tolist(), strict=True)
    expected = [discounts_between(0.3, one_high, one_fraction) for one_high, one_fraction in pairs]
    assert discounts_between(0.3, high, fraction).tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_bounds_leave_no_choice() -> None:
    high = torch.full((3,), 0.9, dtype=F64)
    torch.testing.assert_close(discounts_between(0.9, high, torch.tensor([0.0, 0.4, 1.0], dtype=F64)), high)


@pytest.mark.parametrize("discount", [0.0, 0.6, 0.9])
def test_a_draw_is_terminal_as_often_as_the_weights_say(discount: float) -> None:
    """A counter that stops with probability p per step, weighted by hand."""
    ends = 0.08
    step = torch.arange(400, dtype=F64)
    reached = (discount * (1.0 - ends)) ** step  # discounted probability to be alive after as many steps
    stopped, passed = ends * reached, (1.0 - ends) * (1.0 - discount) * reached
    assert float((stopped + passed).sum()) == pytest.approx(1.0)
    found = terminal_fraction(torch.full((400,), ends, dtype=F64), discount)
    torch.testing.assert_close(found, torch.nan_to_num(stopped / (stopped + passed), nan=float(found[0])))


def test_states_that_are_always_terminal_or_never_are_so_in_draws() -> None:
    known = torch.tensor([0.0, 1.0], dtype=F64)
    assert torch.equal(terminal_fraction(known, torch.tensor([0.9, 0.5], dtype=F64)), known)
