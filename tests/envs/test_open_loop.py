"""Chunks of actions that are taken one after the other."""

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase

from flowmatch_rl.checks import UserError
from flowmatch_rl.envs import OpenLoop

CHUNK, ACTION_DIM = 3, 2


class Counting(TensorDictModuleBase):
    """The k-th chunk that it is asked for is 6 k, 6 k + 1, ..., plus 1000 times the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["observation"], ["action"]
        self.asked = 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        row = torch.arange(CHUNK * ACTION_DIM) + CHUNK * ACTION_DIM * self.asked
        self.asked += 1
        return tensordict.set("action", row + 1000.0 * tensordict["observation"])


def acted(policy: OpenLoop, steps: list[int], observation: list[float]) -> TensorDictBase:
    batch = [len(steps)]
    state = {"observation": torch.tensor(observation)[:, None], "step_count": torch.tensor(steps)[:, None]}
    return policy(TensorDict(state, batch))


def test_the_actions_of_a_chunk_follow_one_another() -> None:
    inner = Counting()
    policy = OpenLoop(inner, CHUNK)
    taken = [acted(policy, [step, step], [0.0, 1.0])["action"].tolist() for step in range(5)]
    first = [[[2.0 * k, 2.0 * k + 1.0], [1000.0 + 2.0 * k, 1001.0 + 2.0 * k]] for k in range(5)]
    assert taken == first
    assert inner.asked == 2


def test_an_environment_whose_episode_begins_gets_a_chunk_of_its_own() -> None:
    policy = OpenLoop(Counting(), CHUNK)
    acted(policy, [0, 0], [0.0, 0.0])
    again = acted(policy, [1, 0], [0.0, 0.0])  # the second environment was reset after one step
    assert again["action"].tolist() == [[2.0, 3.0], [6.0, 7.0]]
    assert again["action_chunk"].tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]]
    later = acted(policy, [2, 1], [0.0, 0.0])
    assert later["action"].tolist() == [[4.0, 5.0], [8.0, 9.0]]


def test_a_single_environment_has_no_batch() -> None:
    policy = OpenLoop(Counting(), CHUNK)
    state = TensorDict({"observation": torch.zeros(1), "step_count": torch.tensor([0])}, [])
    assert policy(state)["action"].tolist() == [0.0, 1.0]


def test_a_chunk_holds_an_action_at_least() -> None:
    with pytest.raises(UserError, match=r"action_chunk must .*got 0"):
        OpenLoop(Counting(), 0)
