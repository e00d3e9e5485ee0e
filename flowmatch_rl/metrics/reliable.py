"""Statistics of a few runs on several tasks: interquartile mean, probability of improvement, stratified bootstrap.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv:2108.13264. Scores are one
tensor per task, shape (*batch, N_m), since tasks may have different numbers of runs; a leading batch dimension holds
resamples.

Their library, rliable, is not used: its last release is of 2024, it depends on arch, statsmodels, seaborn and
absl-py, and it requires the same number of runs on every task. The few lines below are all that is needed of it; tests
compare them with scipy and with numbers computed by hand.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range


def interquartile_mean(scores: Sequence[Tensor]) -> Tensor:
    """Mean of the middle half of all runs of all tasks together.

    Of N runs the floor(N / 4) lowest and as many of the highest are left out. Every run counts once: a task with more
    runs than another has more weight.

    Args:
        scores: Scores on one scale, one tensor per task, shape (*batch, N_m).

    Returns:
        Interquartile mean, in units of the scores, shape (*batch,).

    Raises:
        ValueError: If there are no tasks, or one without runs.

    Reference:
        Agarwal et al., arXiv:2108.13264.
    """
    _check(scores)
    pooled = torch.cat(list(scores), dim=-1).sort(dim=-1).values
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(-1)


def probability_of_improvement(scores: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Probability that a run of one method scores higher than a run of another on the same task, mean over tasks.

    Ties count one half, as in the Mann-Whitney statistic. Scores of different tasks need not be on one scale.

    Args:
        scores: Scores of the method, one tensor per task, shape (*batch, N_m).
        others: Scores of the other method on the same tasks, shape (*batch, K_m).

    Returns:
        Probability, in [0, 1], shape (*batch,).

    Raises:
        ValueError: If there are no tasks, one without runs, or the methods differ in their number of tasks.

    Reference:
        Agarwal et al., arXiv:2108.13264.
    """
    _check(scores)
    _check(others)
    if len(scores) != len(others):
        raise ValueError(f"scores of {len(scores)} tasks cannot be compared with those of {len(others)}")
    each = [_fraction_above(a, b) for a, b in zip(scores, others, strict=True)]
    return torch.stack(each).mean(0)


def resample_runs(scores: Sequence[Tensor], uniform: Tensor) -> list[Tensor]:
    """Draw the runs of each task again, with replacement: the resamples of a stratified bootstrap.

    Args:
        scores: Scores, one tensor per task, shape (N_m,).
        uniform: Uniform random numbers in [0, 1), shape (R, sum of N_m): each picks a run of its task.

    Returns:
        Resampled scores, one tensor per task, shape (R, N_m).

    Raises:
        ValueError: If a task has no runs, scores have a batch dimension, or there are not as many random numbers as
            runs.
    """
    _check(scores)
    if any(task.dim() != 1 for task in scores):
        raise ValueError(f"expected scores of shape (N,), got {[tuple(task.shape) for task in scores]}")
    counts = [len(task) for task in scores]
    if uniform.dim() != 2 or uniform.shape[1] != sum(counts):
        raise ValueError(f"expected uniform of shape (R, {sum(counts)}), got {tuple(uniform.shape)}")
    parts = uniform.split(counts, dim=1)
    return [task[(part * len(task)).long()] for task, part in zip(scores, parts, strict=True)]


def percentile_interval(statistics: Tensor, level: float = 0.95) -> Tensor:
    """Percentile bootstrap interval.

    Args:
        statistics: The statistic of each resample, shape (R, *event).
        level: Nominal coverage of the interval, in (0, 1).

    Returns:
        Lower and upper bound, shape (2, *event).

    Raises:
        UserError: If the level is not in (0, 1).
    """
    check_range("(0, 1)", level=level)
    tails = torch.tensor([0.5 * (1.0 - level), 0.5 * (1.0 + level)], dtype=statistics.dtype, device=statistics.device)
    return statistics.quantile(tails, dim=0)


def _fraction_above(scores: Tensor, others: Tensor) -> Tensor:
    """Fraction of pairs in which the first is higher, ties counted half, shape (*batch,)."""
    difference = scores[..., :, None] - others[..., None, :]  # (*batch, N, K)
    return (0.5 * (difference.sign() + 1.0)).mean((-2, -1))


def _check(scores: Sequence[Tensor]) -> None:
    if not scores:
        raise ValueError("expected scores of at least one task, got none")
    if any(task.dim() == 0 or task.shape[-1] == 0 for task in scores):
        raise ValueError(f"expected runs of every task, got shapes {[tuple(task.shape) for task in scores]}")
