import pytest
import torch

from flowmatch_rl.estimators import time_bin_sums
from flowmatch_rl.estimators.time_bins import time_bin_average, time_bins
from tests.combinations import each_value
from tests.oracles import F64, normal, uniform


@each_value
@pytest.mark.parametrize("t_min", [0.0, 0.05])
@pytest.mark.parametrize("num_bins", [1, 4, 10])
def test_each_time_falls_in_the_bin_that_holds_it(num_bins: int, t_min: float) -> None:
    t = uniform(200, seed=1)
    index = time_bins(t, num_bins, t_min)
    width = (1.0 - 2.0 * t_min) / num_bins
    for time, found in zip(t.tolist(), index.tolist(), strict=True):
        low, high = t_min + found * width, t_min + (found + 1) * width
        assert low <= time or found == 0
        assert time < high or found == num_bins - 1
    ends = time_bins(torch.tensor([0.0, t_min, 1.0 - t_min, 1.0]), num_bins, t_min)
    assert ends.tolist() == [0, 0, num_bins - 1, num_bins - 1]


def test_sums_and_counts_of_batches_add_up_to_the_means_of_the_bins() -> None:
    t, values = uniform(60, seed=2), {"a": normal(60, seed=3), "b": normal(60, seed=4)}
    parts = [
        time_bin_sums({k: v[part] for k, v in values.items()}, t[part], 5, 0.01) for part in (slice(20), slice(20, 60))
    ]
    index, counts = time_bins(t, 5, 0.01), parts[0][1] + parts[1][1]
    for name, value in values.items():
        for b in range(5):
            members = [value[i].item() for i in range(60) if index[i] == b]
            assert counts[b].item() == len(members)
            total = parts[0][0][name][b] + parts[1][0][name][b]
            assert total.item() == pytest.approx(sum(members), abs=1e-12)


def test_an_empty_bin_has_sum_and_count_zero() -> None:
    sums, counts = time_bin_sums({"a": torch.ones(3)}, torch.full((3,), 0.9), 4)
    assert sums["a"].tolist() == [0.0, 0.0, 0.0, 3.0]
    assert counts.tolist() == [0.0, 0.0, 0.0, 3.0]


def test_the_average_of_a_bin_takes_the_place_of_each_of_its_rows() -> None:
    t, value = uniform(30, seed=5), normal(30, 3, seed=6)
    found, index = time_bin_average(value, t, 6), time_bins(t, 6)
    for i in range(30):
        torch.testing.assert_close(found[i], value[index == index[i]].mean(0))
    assert found.dtype == F64


def test_wrong_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a of shape \(3,\), got \(3, 1\)"):
        time_bin_sums({"a": torch.zeros(3, 1)}, torch.zeros(3), 4)
    for num_bins, t_min in ((0, 0.0), (4, 0.5), (4, -0.1)):
        with pytest.raises(ValueError, match=f"num_bins={num_bins}, t_min={t_min}"):
            time_bins(torch.zeros(3), num_bins, t_min)
