"""Checks of arguments, in one wording."""

import math

import pytest

from flowmatch_rl.checks import UserError, check_range, check_word
from tests.combinations import one_test


@one_test
@pytest.mark.parametrize(
    ("interval", "value", "message"),
    [
        ("[0, 1)", 1.0, r"rate must lie in \[0, 1\), got 1.0"),
        ("[0, 1)", -0.1, r"rate must lie in \[0, 1\), got -0.1"),
        ("(0, 0.5)", 0.0, r"rate must lie in \(0, 0.5\), got 0.0"),
        ("(0, 1]", 1.5, r"rate must lie in \(0, 1\], got 1.5"),
        ("(0, inf)", 0, "rate must be positive, got 0"),
        ("(0, inf)", math.inf, "rate must be finite, got inf"),
        ("[1, inf)", 0, "rate must be at least 1, got 0"),
        ("(-1, inf)", -1, "rate must be above -1, got -1"),
        ("[0, 1]", math.nan, "got nan"),
    ],
)
def test_a_number_outside_its_interval_is_refused(interval: str, value: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_range(interval, rate=value)


def test_ends_that_belong_to_an_interval_and_options_not_set_pass() -> None:
    check_range("[0, 1)", a=0.0, b=0.999, c=None)
    check_range("(0, 1]", a=1e-9, b=1)
    check_range("[1, inf)", a=1, b=10**9)


def test_an_unknown_word_is_refused_by_those_known() -> None:
    check_word(("min", "mean"), reduction="mean")
    with pytest.raises(UserError, match="reduction must be one of min, mean, got 'max'"):
        check_word(("min", "mean"), reduction="max")
