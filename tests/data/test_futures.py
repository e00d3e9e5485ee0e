"""Future states that are kept for any reward, and the batches that hold their values."""

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from flowmatch_rl.batches import read_transition
from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.data import PolicyData
from flowmatch_rl.data.futures import FamilyReader, FutureSamples
from flowmatch_rl.testbeds import LinearReward
from tests.data.toy_trajectories import TRAJECTORIES, trajectory_store

N, M, K = 6, 3, 4
TIME = LinearReward(columns=("time",), weights=(2.0,))


def samples(**changes) -> FutureSamples:
    generator = torch.Generator().manual_seed(0)
    parts = {
        "observation": torch.randn(N, 2, generator=generator),
        "actions": torch.rand(N, M, 1, generator=generator),
        "embeddings": torch.randn(N, M, 2, generator=generator),
        "futures": torch.randn(N, M, K, 1, generator=generator),
        "columns": ("time",),
        "discount": 0.75,
        "source": "a test",
    }
    return FutureSamples(**parts | changes)


def reward_of(states: torch.Tensor) -> torch.Tensor:
    return TIME.evaluate(states, ("time",))


def test_a_value_is_the_mean_reward_over_one_minus_the_discount() -> None:
    held = samples()
    wanted = 2.0 * held.futures[..., 0].mean(-1) / 0.25
    torch.testing.assert_close(held.values(reward_of), wanted)
    learned = torch.tensor(1.0, requires_grad=True)
    assert torch.equal(held.values(lambda states: learned * reward_of(states)), held.values(reward_of))
    assert not held.values(lambda states: learned * reward_of(states)).requires_grad


def test_files_keep_everything(tmp_path) -> None:
    held = samples()
    held.save(tmp_path / "f.pt")
    read = FutureSamples.load(tmp_path / "f.pt")
    for name, value in vars(held).items():
        other = getattr(read, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_files_that_are_not_there_or_something_else_are_named(tmp_path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.pt"):
        FutureSamples.load(tmp_path / "none.pt")
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="not a file of future states"):
        FutureSamples.load(tmp_path / "other.pt")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="damaged"):
        FutureSamples.load(tmp_path / "broken.pt")


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match=r"not finite in 72 of 72"):
        samples().values(lambda states: states[..., 0] * torch.nan)


def data(path: Path, **options) -> PolicyData:
    store = trajectory_store(path / "set", [*TRAJECTORIES[:1], *TRAJECTORIES[2:3]], has_rewards=False)
    dims = store.info.observation_dim, store.info.action_dim
    held = samples(observation=torch.randn(N, dims[0]), actions=torch.rand(N, M, dims[1]))
    held.save(path / "f.pt")
    given = {"reward": TIME, "futures": str(path / "f.pt"), "num_updates": 4, "epoch_updates": 2, "held_out": 0.2}
    return PolicyData(str(path / "set"), batch_size=16, **given | options)


def test_batches_hold_the_values_of_the_members_at_states_of_the_file(tmp_path) -> None:
    found = data(tmp_path)
    held = FutureSamples.load(tmp_path / "f.pt")
    values = held.values(reward_of)
    family = read_transition(next(iter(found.train_dataloader()))).family
    assert family is not None
    for row in range(16):
        place = int((held.observation == family.observation[row]).all(1).nonzero())
        assert torch.equal(family.actions[row], held.actions[place])
        assert torch.equal(family.values[row], values[place])


def test_each_batch_depends_on_the_seed_and_its_number_alone() -> None:
    reader = FamilyReader(samples(), reward_of)

    def drawn(seed: int, number: int) -> torch.Tensor:
        return reader.add_to(TensorDict({}, [50]), seed, number)["family", "values"]

    assert torch.equal(drawn(1, 2), drawn(1, 2))
    assert not torch.equal(drawn(1, 2), drawn(1, 3))
    assert not torch.equal(drawn(1, 2), drawn(2, 2))


@pytest.mark.parametrize(
    ("options", "word"),
    [({"reward": None}, r"data\.reward"), ({"n_steps": 2}, "n_steps must be 1"), ({"action_chunk": 2}, "action_chunk")],
    ids=str,
)
def test_data_that_do_not_go_with_future_states_are_refused(options, word, tmp_path) -> None:
    with pytest.raises(UserError, match=word):
        data(tmp_path, **options)


def test_future_states_of_another_environment_are_refused(tmp_path) -> None:
    data(tmp_path)
    samples(observation=torch.zeros(N, 7)).save(tmp_path / "f.pt")
    with pytest.raises(UserError, match="dimension 7"):
        PolicyData(str(tmp_path / "set"), reward=TIME, futures=str(tmp_path / "f.pt"), held_out=0.2)
