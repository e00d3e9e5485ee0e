"""Whether the states of a data set carry what a reward asks for."""

import torch

from flowmatch_rl.evaluation.support import reward_support

ONE = torch.ones(2)


def square(number: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(number, 2, generator=torch.Generator().manual_seed(seed))


def test_futures_like_the_data_are_supported() -> None:
    states, futures = square(4000), square(1000, seed=1)
    found = reward_support(states, states[:, 0], futures, futures[:, 0], ONE)
    assert found.outside < 0.05
    assert found.warnings(("x", "y")) == []
    assert found.line().startswith("support      rewards of 4,000 states")


def test_reward_outside_the_data_is_named_with_its_place() -> None:
    states, near = square(4000), square(500, seed=1)
    far = square(500, seed=2) * 0.1 + torch.tensor([3.0, 0.5])
    futures = torch.cat([near, far])
    found = reward_support(states, states[:, 0], futures, futures[:, 0], ONE)
    share = float(far[:, 0].sum() / futures[:, 0].sum())
    assert abs(found.outside - share) < 0.05
    assert found.place is not None
    torch.testing.assert_close(found.place.float(), far.mean(0), atol=0.05, rtol=0.0)
    assert "around x 3.05, y 0.5" in found.warnings(("x", "y"))[0]


def test_distances_are_in_the_given_units() -> None:
    states, futures = square(2000), square(500, seed=1) + torch.tensor([0.3, 0.0])
    wide = reward_support(states, states[:, 0], futures, futures[:, 0], torch.tensor([1000.0, 1.0]))
    assert wide.outside < 0.05 < reward_support(states, states[:, 0], futures, futures[:, 0], ONE).outside


def test_few_states_that_pay_are_weak_support() -> None:
    states = square(4000)
    rewards = (torch.arange(4000) < 7).float()
    found = reward_support(states, rewards, states, rewards, ONE)
    assert abs(found.paying - 7.0) < 1e-6
    (warning,) = found.warnings(("x", "y"))
    assert "few states pay" in warning


def test_equal_rewards_promise_nothing_elsewhere() -> None:
    states = square(100)
    found = reward_support(states, torch.full((100,), 2.0), states, torch.full((100,), 2.0), ONE)
    assert found.highest == found.lowest
    assert found.outside == 0.0
