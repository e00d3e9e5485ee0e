import pytest
import torch

from flowmatch_rl.metrics import energy_distance, maximum_mean_discrepancy, pairs
from tests.oracles import normal


@pytest.mark.parametrize("at_once", [1, 7, 40, 133])
def test_the_size_of_the_pieces_does_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(19, 2, seed=1), normal(13, 2, seed=2) + 0.3
    expected = energy_distance(x, y), maximum_mean_discrepancy(x, y)
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", at_once)
    torch.testing.assert_close((energy_distance(x, y), maximum_mean_discrepancy(x, y)), expected)


def test_no_piece_holds_more_pairs_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 2, seed=1), normal(30, 2, seed=2)
    sizes = []

    def record(distance: torch.Tensor) -> torch.Tensor:
        sizes.append(distance.numel())
        return torch.ones_like(distance)

    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 200)
    assert pairs.mean_between(record, x, y).item() == 1.0
    assert sum(sizes) == 50 * 30
    sizes.clear()
    assert pairs.mean_within(record, x).item() == 1.0
    assert sum(sizes) == 50 * 49 / 2
    assert max(sizes) <= 200
