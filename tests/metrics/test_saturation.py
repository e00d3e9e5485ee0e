"""Actions at their bounds are counted by the row and by the entry."""

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.metrics import saturated_entries, saturated_fraction

ACTIONS = torch.tensor([[0.995, 0.0, -1.0], [0.5, -0.98, 0.0], [0.0, 0.0, -0.991], [0.0, 0.1, 0.2]])


def test_rows_with_an_entry_at_a_bound_and_entries_at_a_bound_are_counted() -> None:
    assert saturated_fraction(ACTIONS).item() == pytest.approx(2 / 4)
    assert saturated_entries(ACTIONS).item() == pytest.approx(3 / 12)


def test_the_limit_moves_what_counts() -> None:
    assert saturated_fraction(ACTIONS, limit=0.9).item() == pytest.approx(3 / 4)
    assert saturated_entries(ACTIONS, limit=0.9).item() == pytest.approx(4 / 12)


@pytest.mark.parametrize("metric", [saturated_fraction, saturated_entries])
def test_wrong_shape_or_limit_raises(metric) -> None:
    for actions in (torch.zeros(3), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="expected actions"):
            metric(actions)
    with pytest.raises(UserError, match=r"limit must lie in \[0, 1\), got 1.0"):
        metric(ACTIONS, limit=1.0)
