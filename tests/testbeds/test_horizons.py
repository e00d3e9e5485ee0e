"""The geometric law of horizons."""

import math

import pytest
import torch

from flowmatch_rl.testbeds import geometric_steps
from tests.combinations import each_value

GRID = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000


@each_value
@pytest.mark.parametrize("max_steps", [None, 1, 7])
@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 0.99])
def test_frequencies_are_those_of_the_truncated_geometric_law(discount: float, max_steps: int | None) -> None:
    steps = geometric_steps(GRID, discount, max_steps)
    assert steps.dtype == torch.int64
    k = torch.arange(1, 1 + (max_steps or 3000), dtype=torch.float64)
    law = (1.0 - discount) * discount ** (k - 1)
    law = law / law.sum()
    counts = torch.bincount(steps, minlength=len(k) + 1)[1:].double() / len(GRID)
    assert len(counts) == len(k)
    torch.testing.assert_close(counts, law, rtol=0.0, atol=2e-6)


def test_ends_of_the_uniform_law_give_finite_steps() -> None:
    uniform = torch.tensor([0.0, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    for discount in (0.0, 1e-300, 0.5, 0.99, 1.0 - 1e-9):
        free, limited = geometric_steps(uniform, discount), geometric_steps(uniform, discount, 5)
        assert free[0] == limited[0] == 1
        assert 1 <= free[1] <= 1e12
        assert limited[1] == (5 if discount >= 0.5 else 1)
    assert geometric_steps(torch.tensor([0.0, 1.0 - 2**-24]), 0.9).tolist() == [1, 158]


def test_discounts_and_limits_may_differ_by_row() -> None:
    uniform = torch.tensor([[0.1, 0.9, 0.99]] * 3)
    discount, limit = torch.tensor([0.0, 0.5, 0.9]), torch.tensor([4, 2, 1_000])
    rows = [geometric_steps(u, float(g), int(n)) for u, g, n in zip(uniform, discount, limit, strict=True)]
    assert torch.equal(geometric_steps(uniform, discount, limit), torch.stack(rows))
    assert torch.equal(torch.stack(rows)[0], torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("discount", "limit", "words"),
    [(1.0, None, "[0, 1), got values from 1.0"), (-0.1, None, "-0.1"), (0.5, 0, "at least 1, got 0")],
)
def test_numbers_out_of_range_are_refused(discount: float, limit: int | None, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        geometric_steps(torch.rand(3), discount, limit)
    assert words in str(caught.value)


def test_a_discount_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix"):
        geometric_steps(torch.rand(3, 2), torch.full((2,), 0.9))
