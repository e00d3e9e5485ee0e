import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.keys import TRANSITION, read_transition


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


def test_a_time_limit_is_not_read_as_a_termination() -> None:
    batch = batch_of(4)
    batch["next", "terminated"] = torch.zeros(4, 1, dtype=torch.bool)
    assert batch["next", "truncated"].all()
    assert not read_transition(batch).terminated.any()


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
