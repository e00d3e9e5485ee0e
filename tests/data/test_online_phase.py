"""The online phase of policies from data: what batches hold, what is counted, restored and refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from flowmatch_rl.batches import read_transition
from flowmatch_rl.callbacks.progress import Throughput
from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.data import OnlinePhase, PolicyData, collect_transitions
from flowmatch_rl.data.online_phase import mix
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.modules import SoftActorCritic
from tests.combinations import each_value, one_test
from tests.data.toy_trajectories import trajectory_rows
from tests.processes import ALONE
from tests.toys import POLICY_ACTION, ConstantPolicy

COUNTING = GymnasiumEnvironment("ToyCounting-v0")
OFFLINE_EPOCHS = 2


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("data") / "counting")
    collect_transitions(COUNTING, folder, 60, num_envs=2, progress=False)
    return folder


class ChunkPolicy(TensorDictModuleBase):
    """Chooses three actions of two entries at once; its k-th action ever is k / 1000 in both entries."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["observation"], ["action"]
        self.asked = 0

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        numbers = 3 * self.asked + torch.arange(3).repeat_interleave(2)
        self.asked += 1
        return tensordict.set("action", (numbers / 1000).expand(*tensordict.batch_size, 6))


def build(path: str, epoch: int = OFFLINE_EPOCHS, world_size: int = 1, **options: Any) -> PolicyData:
    """Data at the beginning of an epoch; options of the online phase, or of the data."""
    torch.manual_seed(0)
    mine = {"batch_size": 8, "n_steps": 1, "action_chunk": 1, "environment": COUNTING, "num_updates": 6}
    own = {name: options.pop(name, value) for name, value in mine.items()}
    sizes: dict[str, Any] = {"env_steps": 40, "epoch_env_steps": 16, "buffer_capacity": 200}
    policy = options.pop("policy", ConstantPolicy)
    phase = OnlinePhase(**sizes | options)
    data = PolicyData(path, epoch_updates=3, held_out=0.2, online=phase, **own)
    module = SimpleNamespace(
        device=torch.device("cpu"),
        learns_from_rewards=True,
        takes_rounds=False,
        takes_goals=False,
        collection_policy=policy,
        check_finite=lambda: None,
    )
    data.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        strategy=ALONE,
        world_size=world_size,
        global_rank=0,
        lightning_module=module,
        current_epoch=epoch,
        received_sigterm=False,
    )
    data.setup("fit")
    return data


def epoch_of(data: PolicyData) -> list[TensorDictBase]:
    return list(data.train_dataloader())


def collected(batch: TensorDictBase) -> torch.Tensor:
    """Which rows are the policy's, whose action the data, of random actions, do not hold."""
    return batch.get("action").eq(POLICY_ACTION).all(-1)


@each_value
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(("fraction", "number"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_batches_hold_the_fraction_of_the_data_and_true_transitions(
    path: str, n_steps: int, fraction: float, number: int
) -> None:
    for batch in epoch_of(build(path, n_steps=n_steps, data_fraction=fraction)):
        assert batch.batch_size == (8,)
        assert int((~collected(batch)).sum()) == number
        rows = read_transition(batch)
        assert rows.rewards.shape == (8, n_steps)
        torch.testing.assert_close(rows.next_observation[:, 1], rows.observation[:, 1])  # of one episode
        assert torch.equal(rows.next_observation[:, 0] - rows.observation[:, 0], rows.length.float())
        steps = torch.arange(n_steps)
        wanted = torch.where(steps < rows.length[:, None], rows.observation[:, :1] + steps + 1.0, 0.0)
        assert torch.equal(rows.rewards, wanted)


def test_any_part_of_a_batch_has_the_fraction_too(path: str) -> None:
    for batch in epoch_of(build(path, data_fraction=0.5)):
        assert [int(collected(batch)[:size].sum()) for size in (2, 4, 6)] == [1, 2, 3]
    few, many = trajectory_rows([(2, "truncated")]), trajectory_rows([(6, "terminated")])
    few.get("action").fill_(1.0)
    assert mix(few, many)["action"].squeeze(-1).eq(1.0).nonzero().squeeze(-1).tolist() == [1, 5]


@each_value
@pytest.mark.parametrize(("ratio", "num_envs"), [(1.0, 1), (0.5, 2), (2.5, 2)])
@pytest.mark.parametrize(("n_steps", "first"), [(1, 4), (3, 6)])
def test_the_epochs_of_the_phase_take_its_steps_and_the_ratios_share_of_updates(
    path: str, ratio: float, num_envs: int, n_steps: int, first: int
) -> None:
    data = build(
        path, n_steps=n_steps, updates_per_env_step=ratio, num_envs=num_envs, env_steps_per_collection=num_envs
    )
    first += (n_steps - 1) * (num_envs - 1)
    assert data.num_epochs == OFFLINE_EPOCHS + 3
    batches = [len(epoch_of(data)) for _ in range(3)]
    assert batches == [round((40 - first) * ratio / 3)] * 3
    taken = data.state_dict()["local_env_steps"]
    assert abs(taken - 40) <= num_envs + 1.5 / ratio
    assert data.total_updates == 6 + sum(batches)
    assert data.state_dict()["drawn"] == sum(batches)


@pytest.mark.parametrize("truncate", [True, False])
def test_chunks_of_actions_are_acted_out_and_stored_as_those_of_the_data(path: str, truncate: bool) -> None:
    """Episodes of five steps: three chunks begin in each, of which the first is the policy's own."""
    environment = GymnasiumEnvironment("ToyCounting-v0", {"truncate": truncate})
    data = build(path, environment=environment, action_chunk=3, policy=ChunkPolicy, env_steps=80)
    batches = epoch_of(data)
    assert data.replay is not None
    rows = read_transition(data.replay)
    step = rows.observation[:, 0].long()
    assert step.tolist() == [index % 3 for index in range(len(step))]
    numbers = (1000 * rows.action).round().long().unflatten(1, (3, 2))
    assert torch.equal(numbers[..., 0], numbers[..., 1])
    taken = numbers[..., 0] - numbers[0, 0, 0]  # a collector tries the policy out before it begins
    episode = torch.arange(len(step)) // 3  # each took two chunks
    assert torch.equal(taken, 6 * episode[:, None] + step[:, None] + torch.arange(3))
    assert torch.equal(rows.rewards, step[:, None] + 1.0 + torch.arange(3))
    assert torch.equal(rows.next_observation[:, 0].long(), step + 3)
    torch.testing.assert_close(rows.next_observation[:, 1], rows.observation[:, 1])
    assert torch.equal(rows.length, torch.full_like(step, 3))
    assert torch.equal(rows.terminated, (step == 2) & (not truncate))
    marks = set(rows.observation[:, 1].tolist())
    for batch in batches:
        assert batch["action"].shape == (8, 6)
        assert sum(mark in marks for mark in batch["observation"][:, 1].tolist()) == 4
    state = data.state_dict()
    assert state["local_env_steps"] - 5 <= len(step) / 3 * 5 <= state["local_env_steps"]
    resumed = build(path, environment=environment, action_chunk=3, policy=ChunkPolicy, env_steps=80)
    resumed.load_state_dict(state)
    assert (resumed.replay == data.replay).all()
    with pytest.raises(UserError, match=r"has action_chunk 3, this run 1$"):
        build(path, n_steps=3).load_state_dict(state)


def test_episodes_shorter_than_a_chunk_end_the_run(path: str) -> None:
    short = GymnasiumEnvironment("ToyCounting-v0", {"length": 2})
    data = build(path, environment=short, action_chunk=3, policy=ChunkPolicy)
    with pytest.raises(RunError, match=r"20 episodes of ToyCounting-v0 or more, 40 steps, are shorter than action_chu"):
        epoch_of(data)


def test_before_the_phase_batches_are_of_the_data_alone_and_nothing_is_collected(path: str) -> None:
    data = build(path, epoch=OFFLINE_EPOCHS - 1)
    batches = epoch_of(data)
    assert len(batches) == 3
    assert not any(collected(batch).any() for batch in batches)
    assert data.replay is None
    assert not data.recent_returns
    assert not hasattr(data, "env_steps")  # the x-axis is gradient steps
    assert data.trainer.reload_dataloaders_every_n_epochs == 1  # pyright: ignore


def test_all_actions_of_the_phase_are_the_policys_and_returns_of_its_episodes_are_kept(path: str) -> None:
    data = build(path)
    epoch_of(data)
    assert data.replay is not None
    assert collected(data.replay).all()
    assert data.recent_returns
    assert set(data.recent_returns) == {15.0}


def test_one_run_makes_both_phases_and_logs_the_returns_of_its_episodes(path: str) -> None:
    phase = OnlinePhase(40, epoch_env_steps=16, buffer_capacity=200)
    sizes = {"num_updates": 6, "epoch_updates": 3, "eval_episodes": 1, "max_episode_steps": 5}
    data = PolicyData(path, COUNTING, 8, online=phase, **sizes)
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=data.num_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[Throughput()],
    )
    trainer.fit(SoftActorCritic(**data.dimensions), datamodule=data)
    assert trainer.global_step == data.total_updates == 6 + 36
    assert data.state_dict()["local_env_steps"] == 40
    assert float(trainer.callback_metrics["train/episode_return"]) == 15.0


def test_each_process_takes_its_part_of_the_steps(path: str) -> None:
    data = build(path, world_size=2)
    for _ in range(3):
        epoch_of(data)
    assert data.state_dict()["local_env_steps"] == pytest.approx(20, abs=2)


def test_a_resumed_phase_has_its_counters_and_transitions(path: str) -> None:
    first = build(path, updates_per_env_step=0.4)
    epoch_of(first)
    state = first.state_dict()
    second = build(path, updates_per_env_step=0.4)
    second.load_state_dict(state)
    again = second.state_dict()
    assert {name: again[name] for name in state if name != "replay"} == {
        name: state[name] for name in state if name != "replay"
    }
    assert (second.replay == first.replay).all()
    epoch_of(second)
    assert second.state_dict()["local_env_steps"] > state["local_env_steps"]
    assert second.state_dict()["drawn"] == 2 * state["drawn"]
    assert second.replay is not None
    assert torch.equal(
        second.replay["observation"][: len(state["replay"]["observation"])], state["replay"]["observation"]
    )


def test_the_state_of_a_run_without_a_phase_begins_one_unless_it_is_beyond(path: str) -> None:
    data = build(path)
    data.load_state_dict({"drawn": 6})
    counted = {"drawn": 6, "epoch_batches": 3, "offline_updates": 6, "local_env_steps": 0, "pending_updates": 0.0}
    assert data.state_dict() == counted
    with pytest.raises(UserError, match=r"the checkpoint has 7 updates on the data set, more than num_updates 6"):
        data.load_state_dict({"drawn": 7})
    offline = PolicyData(path)
    offline.load_state_dict(build(path).state_dict() | {"drawn": 9})
    assert offline.state_dict() == {"drawn": 9, "epoch_batches": 10_000}


def test_epochs_of_another_length_are_refused_in_training_alone(path: str) -> None:
    data, state = build(path), {"drawn": 4, "epoch_batches": 4}
    told = (
        r"epochs of 4 updates, this run of 3 \(num_updates 6 in 2 epochs\); set epoch_updates to 4 and num_updates to"
    )
    with pytest.raises(UserError, match=told):
        data.load_state_dict(state)
    data.setup("test")
    data.load_state_dict(state)
    assert data.state_dict()["drawn"] == 4


def test_a_phase_that_has_begun_does_not_go_back_to_the_data(path: str) -> None:
    data = build(path)
    epoch_of(data)
    state = data.state_dict()
    for updates in (9, 3):
        other = build(path, num_updates=updates)
        told = f"began after 6 updates on the data set, that of this run begins after {updates}; set num_updates to 6 "
        with pytest.raises(UserError, match=told):
            other.load_state_dict(state)
        other.load_state_dict(state | {"local_env_steps": 0, "drawn": 3})  # it has not begun
        other.setup("test")
        other.load_state_dict(state)
    old = {name: state[name] for name in state if name not in ("offline_updates", "epoch_batches")}
    build(path, num_updates=9).load_state_dict(old)


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_earlier_state_takes_the_place_of_what_came_after_it(path: str, has_begun: bool) -> None:
    data = build(path)
    if has_begun:
        epoch_of(data)
    state, rows, returns = data.state_dict(), data.replay, list(data.recent_returns)
    epoch_of(data)
    data.load_state_dict(state)
    again = data.state_dict()
    assert {name: again[name] for name in again if name != "replay"} == {
        name: state[name] for name in state if name != "replay"
    }
    assert (data.replay is None) if rows is None else bool((data.replay == rows).all())
    assert list(data.recent_returns) == returns
    fresh = build(path)
    fresh.load_state_dict(state)
    for mine, its in zip(epoch_of(data), epoch_of(fresh), strict=True):
        assert torch.equal(mine["observation"][~collected(mine)], its["observation"][~collected(its)])
    assert data.state_dict()["local_env_steps"] == fresh.state_dict()["local_env_steps"]
    assert data.replay is not None
    assert (data.replay == fresh.replay).all()


def test_a_phase_too_short_for_all_processes_is_refused_before_training(path: str) -> None:
    data = build(path, env_steps=8)
    data.trainer.world_size = 2  # pyright: ignore
    data.setup("test")  # which collects nothing
    with pytest.raises(UserError, match="env_steps 8 has no update: each of 2 processes takes 4 steps before"):
        build(path, env_steps=8, world_size=2)


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"environment": None}, ["40 env_steps", "data.environment", "null"]),
        ({"data_fraction": 1.5}, ["data_fraction", "1.5"]),
        ({"data_fraction": -0.1}, ["data_fraction", "-0.1"]),
        ({"data_fraction": 0.05}, ["data_fraction 0.05 of batch_size 8 is 0;", "at least one"]),
        ({"data_fraction": 0.95}, ["data_fraction 0.95 of batch_size 8 is 8;", "at least one"]),
        ({"updates_per_env_step": 0.0}, ["updates_per_env_step", "0.0"]),
        ({"updates_per_env_step": 0.01}, ["env_steps 40", "no update", "updates_per_env_step 0.01"]),
        ({"env_steps": 4}, ["env_steps 4", "no update", "4 steps"]),
        ({"env_steps": 0}, ["env_steps", "0"]),
        ({"epoch_env_steps": 0}, ["epoch_env_steps", "0"]),
        ({"num_envs": 0}, ["num_envs", "0"]),
        ({"num_envs": 3, "env_steps_per_collection": 4}, ["env_steps_per_collection 4", "num_envs 3"]),
        ({"buffer_capacity": 3}, ["buffer_capacity 3", "4"]),
    ],
    ids=str,
)
def test_phases_that_do_not_fit_are_refused_by_name_and_value(
    path: str, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        build(path, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_bounds_of_the_actions_must_be_those_of_the_environment(path: str) -> None:
    info = Path(path) / "dataset.json"
    text = info.read_text()
    changed = json.loads(text)
    assert (changed["action_low"], changed["action_high"]) == ([-3.0, 0.0], [1.0, 10.0])
    try:
        info.write_text(json.dumps(changed | {"action_high": [1.0, 10.00001]}))  # rounded
        PolicyData(path, COUNTING, verify=False)
        info.write_text(json.dumps(changed | {"action_high": [1.0, 5.0]}))
        with pytest.raises(UserError, match=r"bounds entry 1 of the action by \[0, 10\], the data set by \[0, 5\]$"):
            PolicyData(path, COUNTING, verify=False)
        PolicyData(path, verify=False)  # nothing to compare with
        info.write_text(json.dumps(changed | {"action_low": None, "action_high": None}))
        PolicyData(path, COUNTING, verify=False)
    finally:
        info.write_text(text)
