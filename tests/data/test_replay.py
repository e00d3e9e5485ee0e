"""The replay buffer draws what TorchRL's own draws."""

import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from flowmatch_rl.batches import TRANSITION
from flowmatch_rl.data.replay import Replay


def rows(first: int, number: int) -> TensorDict:
    count = torch.arange(first, first + number, dtype=torch.float32)[:, None]
    entries = {"observation": count.expand(-1, 2).contiguous(), "action": -count, ("next", "observation"): count + 1}
    return TensorDict(entries | {("next", "reward"): 2 * count, ("next", "terminated"): count > 5}, [number])


def test_batches_are_those_of_the_buffer_of_torchrl_while_it_fills_and_when_it_drops_the_oldest() -> None:
    replay = Replay(7, 5, 1, 1, torch.device("cpu"))
    other = TensorDictReplayBuffer(storage=LazyTensorStorage(7), batch_size=5)
    for block in range(6):
        replay.add(rows(3 * block, 3)[None])
        other.extend(rows(3 * block, 3))
        assert len(replay) == len(other)
        torch.manual_seed(block)
        drawn = replay.sample()
        torch.manual_seed(block)
        wanted = other.sample()
        assert drawn.batch_size == (5,)
        assert set(drawn.keys(True, True)) == set(TRANSITION)
        assert all(torch.equal(drawn[key], wanted[key]) for key in TRANSITION)
    assert replay.transitions["observation"][:, 0].tolist() == list(range(11, 18))
