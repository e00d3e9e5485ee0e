import dataclasses

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.batches import LENGTH, TRANSITION, read_rollouts, read_segment, read_transition
from tests.combinations import one_test


def batch_of(size: int) -> TensorDict:
    return TensorDict(
        {
            "observation": torch.rand(size, 4),
            "action": torch.rand(size, 2),
            "next": {
                "reward": torch.rand(size, 1),
                "observation": torch.rand(size, 4),
                "terminated": torch.arange(size)[:, None] % 2 == 0,
                "truncated": torch.ones(size, 1, dtype=torch.bool),
                "done": torch.ones(size, 1, dtype=torch.bool),
            },
        },
        batch_size=[size],
    )


@pytest.mark.parametrize("size", [1, 2, 7])
def test_rewards_and_flags_lose_their_unit_dimension_and_nothing_else_changes(size: int) -> None:
    batch = batch_of(size)
    transition = read_transition(batch)
    assert transition.reward.shape == transition.terminated.shape == (size,)
    assert transition.terminated.dtype == torch.bool
    assert torch.equal(transition.reward, batch["next", "reward"][:, 0])
    assert torch.equal(transition.terminated, batch["next", "terminated"][:, 0])
    assert torch.equal(transition.observation, batch["observation"])
    assert torch.equal(transition.action, batch["action"])
    assert torch.equal(transition.next_observation, batch["next", "observation"])
    assert torch.equal(transition.length, torch.ones(size, dtype=torch.long))
    assert transition.rewards is batch["next", "reward"]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_rewards_of_several_steps_stay_apart_and_their_number_is_read(size: int) -> None:
    batch = batch_of(size)
    rewards, length = torch.rand(size, 3), torch.randint(1, 4, (size, 1))
    batch["next", "reward"] = rewards
    batch[LENGTH] = length
    transition = read_transition(batch)
    assert torch.equal(transition.rewards, rewards)
    assert torch.equal(transition.reward, rewards[:, 0])
    assert torch.equal(transition.length, length[:, 0])


def test_rewards_of_several_steps_without_their_number_are_refused() -> None:
    batch = batch_of(4)
    batch["next", "reward"] = torch.rand(4, 2)
    with pytest.raises(KeyError, match="lacks 'length'"):
        read_transition(batch)


def test_a_time_limit_is_not_read_as_a_termination() -> None:
    batch = batch_of(4)
    batch["next", "terminated"] = torch.zeros(4, 1, dtype=torch.bool)
    assert batch["next", "truncated"].all()
    assert not read_transition(batch).terminated.any()


@one_test
@pytest.mark.parametrize("key", TRANSITION, ids=str)
def test_a_missing_entry_is_named(key: str | tuple[str, str]) -> None:
    batch = batch_of(3)
    del batch[key]
    with pytest.raises(KeyError) as caught:
        read_transition(batch)
    assert f"lacks {key!r}" in caught.value.args[0]


def test_a_batch_without_arrival_entries_is_refused_by_name() -> None:
    with pytest.raises(KeyError, match="reward"):
        read_transition(batch_of(3).exclude("next"))


SEGMENT = ("observation", "action", "arrivals", "terminated", "length", "embedding")
ROLLOUTS = ("observation", "action", "embedding")
TRIED = ("tried_actions", "tried_states", "tried_ended")


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((2, 3), float(number)) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("read", "needed", "optional"),
    [
        (read_segment, SEGMENT, ("next_action", "future")),
        (read_rollouts, ROLLOUTS, ("states", "length", "ended", "actions", *TRIED)),
    ],
)
def test_segments_and_rollouts_are_read_by_the_names_of_their_attributes(read, needed, optional) -> None:
    batch = named(*needed, *optional, "something_else")
    value = read(batch)
    assert {field.name for field in dataclasses.fields(value)} == {*needed, *optional}
    assert all(getattr(value, name) is batch[name] for name in (*needed, *optional))
    bare = read(named(*needed))
    assert all(getattr(bare, name) is None for name in optional)


@one_test
@pytest.mark.parametrize(
    ("read", "needed", "name"),
    [(read_segment, SEGMENT, name) for name in SEGMENT] + [(read_rollouts, ROLLOUTS, name) for name in ROLLOUTS],
)
def test_a_segment_or_rollout_without_an_entry_it_needs_is_refused_by_name(read, needed, name) -> None:
    batch = named(*needed)
    del batch[name]
    with pytest.raises(KeyError) as caught:
        read(batch)
    assert caught.value.args[0] == f"the batch lacks {name!r}; it holds {', '.join(sorted(batch))}"
