"""Values of a critic against returns, of episodes written down by hand."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.evaluation import Calibration, calibrate

DISCOUNT = 0.5


def values(observation: Tensor, actions: Tensor) -> Tensor:
    return 10.0 * observation[:, :1] + actions.sum(-1)


def episodes(lengths: list[int], ends: list[bool], steps: int = 6, bonus: float | None = None) -> Calibration:
    mask = torch.arange(steps) < torch.tensor(lengths)[:, None]
    reward = torch.where(mask, 1.0, 99.0)  # what lies beyond an episode does not count
    terminated = torch.zeros_like(mask)
    for row, (length, ended) in enumerate(zip(lengths, ends, strict=True)):
        terminated[row, length - 1] = ended
        terminated[row, length:] = True
    observation = torch.arange(len(lengths), dtype=torch.float32)[:, None]
    action = torch.full((len(lengths), 2), 0.25)
    bonuses = None if bonus is None else torch.full_like(reward, bonus)
    return calibrate(values, observation, action, reward, terminated, mask, DISCOUNT, bonuses)


def test_returns_are_discounted_and_values_are_those_of_the_first_step() -> None:
    found = episodes([1, 3, 6], [True, True, False])
    torch.testing.assert_close(found.observed, torch.tensor([1.0, 1.75, 1.96875]))
    torch.testing.assert_close(found.predicted, torch.tensor([0.5, 10.5, 20.5]))


def test_an_entropy_counts_from_the_second_state_on() -> None:
    found = episodes([1, 3], [True, True], bonus=4.0)
    torch.testing.assert_close(found.observed, torch.tensor([1.0, 1.0 + 0.5 * 5.0 + 0.25 * 5.0]))


def test_an_episode_that_was_cut_counts_if_its_return_is_known() -> None:
    assert episodes([1, 3, 4, 5, 6], [True, False, False, False, False]).known.tolist() == [
        True,
        False,
        False,
        True,
        True,
    ]
    assert 0.5**5 < 0.05 < 0.5**4


def test_metrics_are_of_the_known_episodes() -> None:
    known = torch.tensor([True, True, False, True])
    found = Calibration(torch.tensor([1.0, 2.0, 50.0, 3.0]), torch.tensor([2.0, 4.0, 0.0, 6.0]), known).metrics("test")
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            "test/predicted_return": 2.0,
            "test/discounted_return": 4.0,
            "test/value_bias": -2.0,
            "test/value_error": math.sqrt(14.0 / 3.0),
            "test/value_correlation": 1.0,
        }
    )


def test_without_known_episodes_there_are_no_metrics_and_of_two_no_correlation() -> None:
    one = torch.ones(2)
    assert Calibration(one, one, torch.zeros(2, dtype=torch.bool)).metrics("val") == {}
    assert "val/value_correlation" not in Calibration(one, one, one.bool()).metrics("val")
