"""Whole episodes."""

import pytest
import torch

from flowmatch_rl.checks import RunError
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment, roll_out_episodes
from flowmatch_rl.evaluation import Episodes
from tests.toys import ConstantPolicy


def episodes(num_envs: int, seed: int, max_steps: int = 100, **options):
    env = build_environment(GymnasiumEnvironment("ToyCounting-v0", options), num_envs)
    return roll_out_episodes(env, ConstantPolicy(), seed, max_steps)


@pytest.mark.parametrize("truncate", [True, False])
def test_mask_covers_each_episode_up_to_its_own_end(truncate) -> None:
    steps = episodes(6, 0, length=None, truncate=truncate)
    mask = steps["mask"]
    lengths = mask.sum(1)
    assert len(lengths.unique()) > 1
    assert mask.shape == (6, int(lengths.max()))
    for row, length in zip(steps, lengths.tolist(), strict=True):
        assert row["mask"][:length].all()
        counted = row["next", "observation"][:length, 0]
        torch.testing.assert_close(counted, torch.arange(1.0, length + 1.0))
        assert row["observation"][:length, 1].unique().numel() == 1
        ends = row["next", "terminated" if not truncate else "truncated"][:length, 0]
        assert ends.tolist() == [False] * (length - 1) + [True]
    torch.testing.assert_close(
        Episodes(steps["next", "reward"].squeeze(-1), steps["action"], mask).returns,
        (lengths * (lengths + 1) / 2).float(),
    )


def test_single_environment_gives_one_row() -> None:
    steps = episodes(1, 0, length=4)
    assert steps.batch_size == (1, 4)
    assert steps["mask"].all()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_episodes_are_cut_off_at_the_given_number_of_steps(num_envs) -> None:
    steps = episodes(num_envs, 0, max_steps=3, length=50)
    assert steps.batch_size == (num_envs, 3)
    assert steps["mask"].all()


@pytest.mark.parametrize("num_envs", [1, 4])
def test_same_seed_gives_the_same_episodes_again_on_the_same_environment(num_envs) -> None:
    env = build_environment(GymnasiumEnvironment("ToyCounting-v0", {"length": None}), num_envs)
    first, other, again = (roll_out_episodes(env, ConstantPolicy(), seed, 100) for seed in (3, 4, 3))
    mask = first["mask"]
    assert torch.equal(mask, again["mask"])
    assert torch.equal(first["observation"][mask], again["observation"][mask])
    assert torch.equal(first["next", "reward"][mask], again["next", "reward"][mask])
    assert not torch.equal(first["observation"][:, 0], other["observation"][:, 0])


def test_reward_that_is_not_finite_raises_within_an_episode_only() -> None:
    with pytest.raises(RunError, match="reward"):
        episodes(2, 0, length=5, bad_reward_at=5)
    assert episodes(2, 0, length=5, bad_reward_at=6)["mask"].all()


@pytest.mark.parametrize("solved_from", [2, 9, None])
def test_an_episode_is_solved_if_one_of_its_own_steps_reports_success(solved_from) -> None:
    environment = GymnasiumEnvironment(
        "ToyCounting-v0",
        {"length": None, "solved_from": solved_from},
        success=None if solved_from is None else "is_success",
    )
    steps = roll_out_episodes(build_environment(environment, 3), ConstantPolicy(), 0, 100)
    success = steps.get(("next", "success"), None)
    episodes = Episodes(
        steps["next", "reward"].squeeze(-1),
        steps["action"],
        steps["mask"],
        None if success is None else success.squeeze(-1),
    )
    if solved_from is None:
        assert episodes.solved is None
    else:
        assert episodes.solved.tolist() == [solved_from == 2] * 3  # pyright: ignore[reportOptionalMemberAccess]


def test_padding_of_an_episode_does_not_solve_it() -> None:
    success = torch.tensor([[False, True], [False, True]])
    mask = torch.tensor([[True, False], [True, True]])
    solved = Episodes(torch.zeros(2, 2), torch.zeros(2, 2, 1), mask, success).solved
    assert solved is not None
    assert solved.tolist() == [False, True]
