"""Mean learning curves, against straight lines and the statistics of single points."""

import numpy as np
import pytest
import torch

from flowmatch_rl.metrics import interpolate_curve, mean_curve, percentile_interval
from tests.combinations import one_test


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_interpolation_is_that_of_numpy_and_unknown_outside() -> None:
    x, y = uniform(9).sort().values, uniform(2, 9)[1]
    at = torch.cat([torch.linspace(-0.2, 1.2, 50, dtype=torch.float64), x])
    wanted = np.interp(at.numpy(), x.numpy(), y.numpy(), left=np.nan, right=np.nan)
    torch.testing.assert_close(interpolate_curve(x, y, at), torch.from_numpy(wanted), equal_nan=True)


def test_curve_of_one_point_is_known_there_only() -> None:
    value = interpolate_curve(tensor(2.0), tensor(7.0), tensor(1.0, 2.0, 3.0))
    torch.testing.assert_close(value, tensor(torch.nan, 7.0, torch.nan), equal_nan=True)


def test_mean_is_over_the_runs_that_are_there_and_the_interval_where_all_are() -> None:
    runs = [(tensor(0.0, 4.0), tensor(0.0, 4.0)), (tensor(1.0, 3.0), tensor(10.0, 20.0))]
    curve = mean_curve(runs, torch.arange(-1.0, 6.0, dtype=torch.float64), uniform(500, 2))
    assert curve.x.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert curve.mean.tolist() == [0.0, 5.5, 8.5, 11.5, 4.0]
    assert curve.num_runs.tolist() == [1, 2, 2, 2, 1]
    assert curve.total_runs == 2
    assert curve.interval.isnan().any(0).tolist() == [True, False, False, False, True]
    # Of two runs a quarter of the resamples holds the lower one alone, and a quarter the higher one.
    torch.testing.assert_close(curve.interval[:, 1:4], tensor(1.0, 2.0, 3.0, 10.0, 15.0, 20.0).view(2, 3))


def test_interval_is_the_bootstrap_interval_of_the_mean_at_each_place() -> None:
    values, noise = uniform(5, 3), uniform(400, 5)
    x = tensor(1.0, 2.0, 3.0)
    curve = mean_curve([(x, row) for row in values], x, noise, level=0.8)
    for place in range(3):
        drawn = values[:, place][(noise * 5).long()].mean(1)
        torch.testing.assert_close(curve.interval[:, place], percentile_interval(drawn, 0.8))


def test_single_run_has_no_interval() -> None:
    curve = mean_curve([(tensor(1.0, 2.0), tensor(3.0, 4.0))], tensor(1.0, 2.0), uniform(10, 1))
    assert curve.mean.tolist() == [3.0, 4.0]
    assert bool(curve.interval.isnan().all())


@one_test
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_curve([], tensor(1.0), uniform(3, 0)), "got none"),
        (lambda: interpolate_curve(tensor(1.0, 1.0), tensor(0.0, 1.0), tensor(1.0)), "ascend"),
        (lambda: interpolate_curve(tensor(), tensor(), tensor(1.0)), r"\(0,\)"),
        (lambda: interpolate_curve(tensor(1.0), tensor(1.0, 2.0), tensor(1.0)), r"\(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
