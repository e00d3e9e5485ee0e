"""Statistics of runs, against numbers worked out by hand, enumeration and scipy."""

import itertools

import pytest
import scipy.stats
import torch

from flowmatch_rl.metrics import (
    interquartile_mean,
    percentile_interval,
    probability_of_improvement,
    resample_runs,
)
from tests.combinations import one_test


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_interquartile_mean_of_eight_runs_leaves_two_out_on_either_side() -> None:
    # Sorted: -9, 0, | 0.25, 0.5, 0.75, 1, | 7, 100.
    scores = [tensor(100.0, 0.5, 0.75, -9.0), tensor(1.0, 0.25, 7.0, 0.0)]
    assert float(interquartile_mean(scores)) == pytest.approx(0.625)


@pytest.mark.parametrize("counts", [(1,), (3,), (2, 1), (5, 2, 4), (3, 3, 3)])
def test_interquartile_mean_is_the_trimmed_mean_of_scipy_for_any_number_of_runs(counts) -> None:
    scores = list(uniform(7, sum(counts)).split(list(counts), dim=1))
    wanted = scipy.stats.trim_mean(torch.cat(scores, 1).numpy(), 0.25, axis=1)
    torch.testing.assert_close(interquartile_mean(scores), torch.from_numpy(wanted))


def test_probability_of_improvement_counts_pairs_and_halves_ties() -> None:
    # First task: (3 > 1), (3 = 3), (2 > 1), (2 < 3): 2.5 of 4. Second: 0 of 2.
    first = [tensor(3.0, 2.0), tensor(-1.0)]
    second = [tensor(1.0, 3.0), tensor(0.0, 5.0)]
    assert float(probability_of_improvement(first, second)) == pytest.approx((2.5 / 4 + 0.0) / 2)
    assert float(probability_of_improvement(second, first)) == pytest.approx(1.0 - 0.3125)


def test_probability_of_improvement_is_the_statistic_of_mann_and_whitney_whatever_the_scale_of_a_task() -> None:
    scores = list((10.0 * uniform(9)).round().split([5, 4]))
    others = list((10.0 * uniform(9, seed=1)).round().split([3, 6]))
    each = [
        scipy.stats.mannwhitneyu(a, b, alternative="greater").statistic / (len(a) * len(b))
        for a, b in zip(scores, others, strict=True)
    ]
    assert float(probability_of_improvement(scores, others)) == pytest.approx(sum(each) / 2)
    scaled = [1000.0 * scores[0] - 3.0, scores[1]], [1000.0 * others[0] - 3.0, others[1]]
    assert float(probability_of_improvement(*scaled)) == pytest.approx(sum(each) / 2)


def test_a_batch_of_resamples_is_treated_one_by_one() -> None:
    scores, others = [uniform(6, 3), uniform(6, 5, seed=1)], [uniform(6, 4, seed=2), uniform(6, 2, seed=3)]
    means, chances = interquartile_mean(scores), probability_of_improvement(scores, others)
    assert means.shape == chances.shape == (6,)
    for row in range(6):
        a, b = [task[row] for task in scores], [task[row] for task in others]
        torch.testing.assert_close(means[row], interquartile_mean(a))
        torch.testing.assert_close(chances[row], probability_of_improvement(a, b))


def test_resamples_draw_each_task_from_its_own_runs_all_equally_often() -> None:
    scores = [tensor(1.0, 2.0, 3.0), tensor(10.0)]
    first, second = resample_runs(scores, uniform(30_000, 4))
    assert (first.shape, second.shape) == ((30_000, 3), (30_000, 1))
    assert second.unique().tolist() == [10.0]
    for value in scores[0]:
        assert float((first == value).double().mean()) == pytest.approx(1 / 3, abs=0.01)
    # Places of a resample are drawn independently of each other.
    assert float((first[:, 0] == first[:, 1]).double().mean()) == pytest.approx(1 / 3, abs=0.01)


def test_random_numbers_at_the_ends_pick_the_first_and_the_last_run() -> None:
    below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    (picked,) = resample_runs([tensor(5.0, 6.0, 7.0)], torch.stack([torch.zeros(3), below_one.expand(3)]))
    assert picked.tolist() == [[5.0] * 3, [7.0] * 3]


def test_bootstrap_of_the_mean_has_the_law_found_by_counting_every_resample() -> None:
    runs = tensor(0.0, 1.0, 4.0)
    (drawn,) = resample_runs([runs], uniform(40_000, 3))
    every = [sum(each) for each in itertools.product(runs.tolist(), repeat=3)]
    assert set(drawn.sum(1).tolist()) == set(every)
    for total in set(every):
        share = float((drawn.sum(1) == total).double().mean())
        assert share == pytest.approx(every.count(total) / 27, abs=0.01)


def test_interval_of_the_mean_agrees_with_the_bootstrap_of_scipy() -> None:
    runs = uniform(12)
    (drawn,) = resample_runs([runs], uniform(20_000, 12, seed=1))
    wanted = scipy.stats.bootstrap(
        (runs.numpy(),), lambda x, axis: x.mean(axis), n_resamples=20_000, method="percentile", random_state=0
    ).confidence_interval
    assert percentile_interval(drawn.mean(1)).tolist() == pytest.approx([wanted.low, wanted.high], abs=0.01)


def test_interval_leaves_half_of_the_rest_on_either_side_and_keeps_event_dimensions() -> None:
    ladder = torch.arange(101, dtype=torch.float64)
    interval = percentile_interval(torch.stack([ladder, -ladder], 1), 0.9)
    torch.testing.assert_close(interval, torch.tensor([[5.0, -95.0], [95.0, -5.0]], dtype=torch.float64))


@one_test
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interquartile_mean([]), "got none"),
        (lambda: interquartile_mean([tensor(1.0), tensor()]), r"\(0,\)"),
        (lambda: probability_of_improvement([tensor(1.0)], [tensor(1.0), tensor(2.0)]), "1 tasks .* of 2"),
        (lambda: resample_runs([tensor(1.0, 2.0)], uniform(5, 3)), r"\(R, 2\), got \(5, 3\)"),
        (lambda: resample_runs([uniform(2, 2)], uniform(5, 2)), r"\(N,\)"),
        (lambda: percentile_interval(tensor(1.0), 1.0), "1.0"),
    ],
)
def test_what_does_not_fit_is_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
