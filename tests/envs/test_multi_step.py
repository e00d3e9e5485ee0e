"""Transitions of several steps, against a slow reference and on environments whose every number is known."""

import itertools
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.batches import LENGTH, TRANSITION, read_transition
from flowmatch_rl.data import OnlineData
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.envs.multi_step import MultiStep
from tests.combinations import each_value
from tests.data.test_online import build, held, take

KEYS = [*TRANSITION, LENGTH]


def scripted(num_envs: int, total: int, seed: int, end_share: float = 0.3) -> TensorDict:
    """Steps (E, T) with numbers that name them; episodes end at random, half of them by termination."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(total).expand(num_envs, -1)
    name = (1000.0 * torch.arange(num_envs)[:, None] + time).double()[..., None]
    done = torch.rand(num_envs, total, 1, generator=generator) < end_share
    terminated = done & (torch.rand(num_envs, total, 1, generator=generator) < 0.5)
    arrival = {
        "observation": torch.cat([name + 0.5, -name], -1),
        "reward": torch.randn(num_envs, total, 1, generator=generator).double(),
        "terminated": terminated,
        "truncated": done & ~terminated,
        "done": done,
    }
    return TensorDict(
        {"observation": torch.cat([name, -name], -1), "action": name / 1e4, "next": arrival}, [num_envs, total]
    )


def slow_reference(steps: TensorDict, n: int) -> dict[tuple[int, int], dict[str, Any]]:
    """Transitions by environment and first step, by loops; those that are not complete are left out."""
    found = {}
    num_envs, total = steps.batch_size
    for e, t in itertools.product(range(num_envs), range(total)):
        rewards = []
        for k in range(t, total):
            rewards.append(float(steps["next", "reward"][e, k]))
            if steps["next", "done"][e, k] or len(rewards) == n:
                found[e, t] = {
                    "action": float(steps["action"][e, t]),
                    "observation": steps["observation"][e, t].tolist(),
                    "next_observation": steps["next", "observation"][e, k].tolist(),
                    "terminated": bool(steps["next", "terminated"][e, k]),
                    "rewards": rewards + [0.0] * (n - len(rewards)),
                    "length": len(rewards),
                }
                break
    return found


def by_first_step(rows: TensorDict) -> dict[tuple[int, int], dict[str, Any]]:
    found = {}
    for i in range(len(rows)):
        name = float(rows["observation"][i, 0])
        key = int(name // 1000), int(name % 1000)
        assert key not in found, f"{key} came twice"
        found[key] = {
            "action": float(rows["action"][i, 0]),
            "observation": rows["observation"][i].tolist(),
            "next_observation": rows["next", "observation"][i].tolist(),
            "terminated": bool(rows["next", "terminated"][i, 0]),
            "rewards": rows["next", "reward"][i].tolist(),
            "length": int(rows[LENGTH][i, 0]),
        }
    return found


@each_value
@pytest.mark.parametrize("block", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_transitions_equal_those_of_a_slow_reference_however_the_steps_are_cut(n, num_envs, block) -> None:
    steps = scripted(num_envs, 40, seed=n)
    fold = MultiStep(n)
    pieces = [fold.fold(steps[:, start : start + block]) for start in range(0, 40, block)]
    wanted = slow_reference(steps, n)
    assert by_first_step(torch.cat(pieces)) == wanted
    assert {transition["length"] for transition in wanted.values()} == set(range(1, n + 1))
    assert len({transition["terminated"] for transition in wanted.values()}) == 2


@each_value
@pytest.mark.parametrize("block", [1, 3, 40])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_chunks_hold_the_actions_of_all_their_steps(num_envs, block) -> None:
    steps, chunk = scripted(num_envs, 40, seed=0), 3
    fold = MultiStep(chunk, chunk)
    rows = torch.cat([fold.fold(steps[:, start : start + block]) for start in range(0, 40, block)])
    whole = {key: row for key, row in slow_reference(steps, chunk).items() if row["length"] == chunk}
    assert by_first_step(rows) == whole
    assert {row["terminated"] for row in whole.values()} == {True, False}
    torch.testing.assert_close(rows["action"], (rows["observation"][:, :1] + torch.arange(chunk)) / 1e4)


def test_a_transition_is_handed_out_with_the_step_that_completes_it() -> None:
    steps = scripted(2, 30, seed=0)
    fold = MultiStep(3)
    before: set[tuple[int, int]] = set()
    for last in range(30):
        new = set(by_first_step(fold.fold(steps[:, last : last + 1])))
        now = set(slow_reference(steps[:, : last + 1], 3))
        assert new == now - before
        before = now


def test_what_is_handed_out_shares_no_memory_with_the_steps() -> None:
    steps = scripted(2, 4, seed=0, end_share=0.0)
    fold = MultiStep(3)
    rows = [fold.fold(steps[:, :2])]
    wanted = slow_reference(steps, 3)
    steps[:, :2] = steps[:, :2].apply(
        torch.zeros_like
    )  # a collector may write its next block into the last one's memory
    rows.append(fold.fold(steps[:, 2:]))
    assert by_first_step(torch.cat(rows)) == wanted


def test_no_steps_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        MultiStep(0)
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        build(n_steps=0)
    with pytest.raises(ValueError, match="action_chunk must be 1 or num_steps 3, got 2"):
        MultiStep(3, 2)


def n_step(truncate: bool = True, length: int | None = 5, **options: Any) -> OnlineData:
    environment = GymnasiumEnvironment("ToyCounting-v0", {"truncate": truncate, "length": length})
    return build(environment, **options)


@each_value
@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(("num_envs", "block"), [(1, 1), (1, 4), (2, 2), (2, 6)])
def test_collected_transitions_end_with_the_episode_or_after_n_steps(num_envs, block, truncate) -> None:
    """The environment counts its steps, rewards step k with k, and ends after the fifth."""
    data = n_step(truncate, num_envs=num_envs, env_steps_per_collection=block, n_steps=3, warmup_env_steps=12)
    take(data, 30)
    rows = held(data)
    start, arrival = rows["observation"], rows["next", "observation"]
    length = rows[LENGTH][:, 0]
    torch.testing.assert_close(length, (5 - start[:, 0].long()).clamp_max(3))
    torch.testing.assert_close(arrival[:, 0], start[:, 0] + length)
    torch.testing.assert_close(arrival[:, 1], start[:, 1])
    steps = torch.arange(3)
    wanted = (start[:, :1] + 1.0 + steps) * (steps < length[:, None])
    torch.testing.assert_close(rows["next", "reward"], wanted)
    ended = arrival[:, 0] == 5.0
    assert torch.equal(rows["next", "terminated"][:, 0], ended & (not truncate))
    assert ended.any()
    assert not ended.all()
    # Every step begins one transition, but for those that wait.
    assert data.env_steps - 2 * num_envs <= len(rows) <= data.env_steps
    beginnings = {tuple(row) for row in start.tolist()}
    assert len(beginnings) == len(rows)
    transition = read_transition(take(data, 1)[0])
    assert transition.rewards.shape == (4, 3)
    assert transition.length.shape == transition.terminated.shape == transition.reward.shape == (4,)
    data.teardown("fit")


@pytest.mark.parametrize("num_envs", [1, 2])
def test_counts_of_steps_and_updates_are_those_of_one_step(num_envs) -> None:
    counted = []
    for n in (1, 4):
        data = n_step(num_envs=num_envs, env_steps_per_collection=num_envs, n_steps=n, warmup_env_steps=20)
        take(data, 20)
        counted.append((data.env_steps, list(data.recent_returns)))
    assert counted[0] == counted[1]


def test_warm_up_goes_on_until_there_is_a_batch_of_transitions() -> None:
    data = n_step(length=50, n_steps=6, warmup_env_steps=8, batch_size=8)
    take(data, 1)
    assert data.env_steps == 8 + 5 + 1
    assert len(held(data)) == 9


def test_one_step_stores_the_keys_it_always_stored() -> None:
    data = n_step()
    take(data, 2)
    assert set(data.state_dict()["replay"]) == {
        "observation", "action", "next/observation", "next/reward", "next/terminated"
    }  # fmt: skip
    assert held(data)["next", "reward"].shape == (10, 1)
    assert held(data).get(LENGTH, None) is None


@pytest.mark.parametrize("number", [4, 30])
def test_a_resumed_run_goes_on_with_the_transitions_and_without_the_steps_that_waited(number) -> None:
    options = {"n_steps": 3, "buffer_capacity": 24, "length": 7, "warmup_env_steps": 12}
    first = n_step(**options)
    take(first, number)
    second = n_step(**options)
    second.load_state_dict(first.state_dict())
    before = held(first)
    assert second.env_steps == first.env_steps
    assert (held(second) == before).all()
    take(second, 12)
    fresh = held(second)
    # Episodes that the interruption cut are not continued, and those that follow are whole.
    marks = {tuple(row) for row in before["observation"].tolist()}
    new = torch.tensor([tuple(row) not in marks for row in fresh["observation"].tolist()])
    assert new.sum() >= 8
    beginnings = fresh["observation"][new & (fresh["observation"][:, 0] == 0.0), 1]
    assert set(beginnings.tolist()) == set(fresh["observation"][new, 1].tolist())
    torch.testing.assert_close(fresh[LENGTH][:, 0], (7 - fresh["observation"][:, 0].long()).clamp_max(3))
    torch.testing.assert_close(fresh["next", "observation"][:, 1], fresh["observation"][:, 1])


@pytest.mark.parametrize("number", [4, 30, 33])
def test_saved_transitions_of_several_steps_are_oldest_first(number) -> None:
    data = n_step(n_steps=3, buffer_capacity=24, length=7, warmup_env_steps=12)
    take(data, number)
    step, mark = data.state_dict()["replay"]["observation"].unbind(1)
    follows = (step[1:] == step[:-1] + 1.0) & (mark[1:] == mark[:-1])
    assert (follows | ((step[1:] == 0.0) & (step[:-1] == 6.0))).all()


def test_a_second_fit_in_the_same_process_does_not_join_episodes() -> None:
    data = n_step(n_steps=3, length=7, warmup_env_steps=12)
    take(data, 3)
    data.teardown("fit")
    take(data, 20)
    torch.testing.assert_close(held(data)["next", "observation"][:, 1], held(data)["observation"][:, 1])


@pytest.mark.parametrize(("saved", "wanted"), [(1, 3), (3, 1), (2, 3)])
def test_a_replay_buffer_of_another_number_of_steps_is_refused(saved, wanted) -> None:
    first = n_step(n_steps=saved, warmup_env_steps=12)
    take(first, 2)
    with pytest.raises(ValueError, match=f"n_steps {saved}, this run {wanted}"):
        n_step(n_steps=wanted).load_state_dict(first.state_dict())
