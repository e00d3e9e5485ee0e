"""Collected data: counting, ends of episodes, warm-up, restoring, and refusals."""

import math
import signal
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from flowmatch_rl.batches import TRANSITION
from flowmatch_rl.checks import RunError
from flowmatch_rl.data import OnlineData, episodes
from flowmatch_rl.data.replay import Replay
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment
from tests.cli.support import default_signals
from tests.combinations import each_value, one_test
from tests.envs.test_finite import FailsAt
from tests.processes import ALONE
from tests.toys import POLICY_ACTION, ConstantPolicy

COUNTING = GymnasiumEnvironment("ToyCounting-v0")


def build(environment: GymnasiumEnvironment = COUNTING, world_size: int = 1, rank: int = 0, **options) -> OnlineData:
    torch.manual_seed(0)
    data = OnlineData(
        environment,
        **{"total_env_steps": 1000, "warmup_env_steps": 8, "batch_size": 4, "buffer_capacity": 200} | options,
    )
    module = SimpleNamespace(
        device=torch.device("cpu"),
        takes_rounds=False,
        collection_policy=ConstantPolicy,
        evaluation_policy=ConstantPolicy,
        check_finite=lambda: None,
    )
    data.trainer = SimpleNamespace(
        strategy=ALONE, world_size=world_size, global_rank=rank, lightning_module=module, received_sigterm=False
    )
    return data


def take(data: OnlineData, number: int) -> list[TensorDictBase]:
    return [data.next_batch() for _ in range(number)]


def held(data: OnlineData) -> TensorDictBase:
    assert data.replay is not None
    return data.replay


@each_value
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("ratio", [0.5, 1, 2, 2.5, 20])
def test_env_steps_are_the_warm_up_and_the_ratios_share_of_the_updates(ratio, num_envs) -> None:
    data = build(updates_per_env_step=ratio, num_envs=num_envs, env_steps_per_collection=num_envs)
    taken = 0
    for number in (1, 3, 7):
        batches = take(data, number)
        taken += number
        assert len(batches) == number
        wanted = 8 + num_envs * math.ceil(taken / (ratio * num_envs))
        assert data.env_steps == len(held(data)) == wanted
    data.teardown("fit")


def test_blocks_larger_than_a_step_count_every_step_once() -> None:
    data = build(warmup_env_steps=10, env_steps_per_collection=4)
    take(data, 5)
    assert data.env_steps == len(held(data)) == 12 + 8


def test_env_steps_count_all_processes() -> None:
    data = build(world_size=2)
    take(data, 6)
    assert len(held(data)) == 4 + 6
    assert data.env_steps == 20


def test_processes_see_different_episodes_and_one_process_the_same_again() -> None:
    marks = []
    for rank in (0, 1, 0):
        data = build(rank=rank, world_size=2)
        take(data, 6)
        marks.append(held(data)["observation"][:, 1])
    assert torch.equal(marks[0], marks[2])
    assert not set(marks[0].tolist()) & set(marks[1].tolist())


@pytest.mark.parametrize("num_envs", [1, 2])
def test_time_limit_in_the_buffer_does_not_terminate_and_keeps_the_true_last_observation(num_envs) -> None:
    data = build(num_envs=num_envs, env_steps_per_collection=num_envs)
    take(data, 40)
    steps = held(data)
    last = steps["next", "observation"][:, 0] == 5.0
    assert last.sum() >= 6
    assert not steps["next", "terminated"].any()
    # Each transition advances the counter by one, within its own episode.
    torch.testing.assert_close(steps["next", "observation"][:, 0], steps["observation"][:, 0] + 1.0)
    torch.testing.assert_close(steps["next", "observation"][:, 1], steps["observation"][:, 1])
    torch.testing.assert_close(steps["next", "reward"][:, 0], steps["next", "observation"][:, 0])


@pytest.mark.parametrize("before_writing", [True, False])
def test_an_interruption_while_a_step_is_stored_leaves_counters_and_buffer_in_step(monkeypatch, before_writing) -> None:
    data = build(updates_per_env_step=1.0)
    take(data, 3)
    add = Replay.add

    def interrupted_add(replay: Replay, steps: TensorDictBase) -> None:
        if before_writing:
            signal.raise_signal(signal.SIGINT)
        add(replay, steps)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, default_signals():
        patch.setattr(Replay, "add", interrupted_add)
        with pytest.raises(KeyboardInterrupt):
            data.next_batch()
    state = data.state_dict()
    assert state["local_env_steps"] == len(state["replay"]["action"]) == 8 + 4
    assert state["pending_updates"] == 1.0
    data.next_batch()
    assert data.env_steps == len(held(data)) == 8 + 4


def test_termination_in_the_buffer_is_marked() -> None:
    data = build(GymnasiumEnvironment("ToyCounting-v0", {"truncate": False}))
    take(data, 40)
    steps = held(data)
    assert torch.equal(steps["next", "terminated"][:, 0], steps["next", "observation"][:, 0] == 5.0)
    assert steps["next", "terminated"].any()


@pytest.mark.parametrize("num_envs", [1, 2])
def test_warm_up_actions_are_random_and_later_ones_the_policys(num_envs) -> None:
    data = build(num_envs=num_envs, env_steps_per_collection=num_envs)
    take(data, 10)
    actions = held(data)["action"]
    assert (actions[:8] != POLICY_ACTION).all()
    assert actions[:8].unique().numel() == 16
    assert actions[:8].abs().max() <= 1.0
    assert (actions[8:] == POLICY_ACTION).all()


def test_batches_hold_the_entries_of_a_transition() -> None:
    (batch,) = take(build(), 1)
    assert batch.batch_size == (4,)
    assert all(batch.get(key, None) is not None for key in TRANSITION)


def test_returns_of_finished_episodes_are_kept() -> None:
    data = build()
    take(data, 12)
    assert list(data.recent_returns) == [15.0] * 4


@pytest.mark.parametrize("number", [3, 20, 37], ids=["not full", "wrapped", "wrapped twice"])
def test_restored_data_goes_on_with_its_counters_and_transitions(number) -> None:
    first = build(buffer_capacity=16, updates_per_env_step=0.4)
    take(first, number)
    second = build(buffer_capacity=16, updates_per_env_step=0.4)
    second.load_state_dict(first.state_dict())
    for _ in range(2):  # also if it is saved again before the first batch
        state = second.state_dict()
        assert second.env_steps == first.env_steps
        assert state["pending_updates"] == first.state_dict()["pending_updates"]
        assert (held(second) == held(first)).all()
        second = build(buffer_capacity=16, updates_per_env_step=0.4)
        second.load_state_dict(state)


def test_an_earlier_state_takes_the_place_of_what_came_after_it() -> None:
    data = build(env_steps_per_collection=2)
    take(data, 12)
    state, rows, returns = data.state_dict(), held(data), list(data.recent_returns)
    take(data, 9)
    data.load_state_dict(state)
    assert (held(data) == rows).all()
    assert list(data.recent_returns) == returns
    fresh = build(env_steps_per_collection=2)
    fresh.load_state_dict(state)
    take(data, 9)
    take(fresh, 9)
    assert data.env_steps == fresh.env_steps
    assert (held(data) == held(fresh)).all()


def test_saved_transitions_are_oldest_first_also_after_several_restores() -> None:
    data, known = build(buffer_capacity=16), torch.empty(0, 2)
    for number in (3, 6, 10, 2, 9):
        steps = data.env_steps
        take(data, number)
        begins, ends = held(data)["observation"], held(data)["next", "observation"]
        new = data.env_steps - steps
        assert torch.equal(begins[:-new], known[len(known) - (len(begins) - new) :])
        goes_on = ends[-new:-1, 0] != 5.0
        assert torch.equal(begins[-new + 1 :][goes_on], ends[-new:-1][goes_on])
        known, state = begins, data.state_dict()
        assert torch.equal(state["replay"]["observation"], begins)
        data = build(buffer_capacity=16)
        data.load_state_dict(state)


def test_without_replay_in_the_checkpoint_the_counters_go_on_and_the_buffer_is_filled_again() -> None:
    first = build(checkpoint_replay=False)
    take(first, 5)
    state = first.state_dict()
    assert "replay" not in state
    second = build(checkpoint_replay=False)
    second.load_state_dict(state)
    take(second, 1)
    assert len(held(second)) >= 4
    assert second.env_steps == first.env_steps + len(held(second))
    assert (held(second)["action"] == POLICY_ACTION).all()


@one_test
@pytest.mark.parametrize("bad_value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(("option", "key"), [("bad_reward_at", "reward"), ("bad_observation_at", "observation")])
def test_numbers_that_are_not_finite_end_the_run_and_are_named_with_their_step(
    option, key, num_envs, bad_value
) -> None:
    environment = GymnasiumEnvironment("ToyCounting-v0", {option: 13, "bad_value": bad_value})
    data = build(environment, num_envs=num_envs, env_steps_per_collection=num_envs)
    with pytest.raises(RunError) as caught:
        take(data, 100)
    message = str(caught.value)
    assert key in message
    assert "ToyCounting-v0" in message
    first_bad_step = 13 if num_envs == 1 else 25
    assert f"environment step {first_bad_step} (step 3 of an episode)" in message
    assert "\n" not in message


@pytest.mark.parametrize("world_size", [1, 2])
def test_steps_of_messages_count_all_processes_and_what_a_resumed_run_had_taken(world_size) -> None:
    before = build(world_size=world_size)
    take(before, 3)
    environment = GymnasiumEnvironment("ToyCounting-v0", {"bad_reward_at": 6})
    data = build(environment, world_size=world_size, env_steps_per_collection=4)
    data.load_state_dict({"ranks": [before.state_dict()] * world_size})
    with pytest.raises(RunError, match=f"environment step {before.env_steps + 6 * world_size} "):
        take(data, 100)


def test_an_action_that_is_not_finite_is_named_as_the_policys_unless_the_module_knows_a_network_that_diverged() -> None:
    data = build()
    module = data.trainer.lightning_module
    module.collection_policy = lambda: FailsAt(3)
    with pytest.raises(RunError, match=r"^the policy's action is not finite \(nan\) at environment step 13 "):
        take(data, 100)

    def diverged() -> None:
        raise RunError("the weights of the critics are not finite")

    data = build()
    data.trainer.lightning_module.collection_policy = lambda: FailsAt(3)
    data.trainer.lightning_module.check_finite = diverged
    with pytest.raises(RunError, match=r"^the weights of the critics"):
        take(data, 100)


@one_test
@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(
            ({name: 0}, [name, "0"])
            for name in (
                "epoch_env_steps",
                "batch_size",
                "buffer_capacity",
                "num_envs",
                "env_steps_per_collection",
                "eval_episodes",
                "test_episodes",
                "max_episode_steps",
            )
        ),
        ({"updates_per_env_step": 0.0}, ["updates_per_env_step", "0.0"]),
        ({"updates_per_env_step": -1.0}, ["updates_per_env_step", "-1.0"]),
        ({"updates_per_env_step": float("nan")}, ["updates_per_env_step", "nan"]),
        ({"batch_size": 9}, ["batch_size 9", "8"]),
        ({"buffer_capacity": 3}, ["buffer_capacity 3", "4"]),
        ({"total_env_steps": 8}, ["total_env_steps 8"]),
        ({"n_steps": -1}, ["n_steps", "-1"]),
        ({"num_envs": 3, "env_steps_per_collection": 4}, ["env_steps_per_collection 4", "num_envs 3"]),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused_by_name_and_value(options, words) -> None:
    with pytest.raises(ValueError) as caught:
        build(**options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("total", "epoch", "epochs"), [(108, 50, 2), (109, 50, 3), (18, 500, 1)])
def test_epochs_divide_the_steps_after_the_warm_up(total, epoch, epochs) -> None:
    data = build(total_env_steps=total, epoch_env_steps=epoch)
    assert data.num_epochs == epochs
    assert len(data.train_dataloader()) * epochs == pytest.approx(total - 8, abs=epochs)


@pytest.mark.parametrize(("ratio", "block"), [(20, 1), (2.5, 1), (4, 5), (1.5, 10)])
def test_the_epochs_of_a_run_of_many_updates_per_step_take_exactly_its_steps_and_updates(ratio, block) -> None:
    data = build(total_env_steps=48, epoch_env_steps=20, updates_per_env_step=ratio, env_steps_per_collection=block)
    batches = [len(list(data.train_dataloader())) for _ in range(data.num_epochs)]
    assert batches == [20 * ratio] * 2
    # The warm-up is the first blocks that hold 8 steps.
    assert data.env_steps == math.ceil(8 / block) * block + 40
    assert data.state_dict()["pending_updates"] == 0.0


def test_two_rounds_of_the_loader_do_not_warm_up_twice() -> None:
    data = build(total_env_steps=28, epoch_env_steps=10)
    for epoch in (1, 2):
        assert len(list(data.train_dataloader())) == 10
        assert data.env_steps == 8 + 10 * epoch


def test_evaluation_leaves_counters_and_training_data_alone_and_repeats_itself() -> None:
    data = build(eval_episodes=3)
    take(data, 5)
    counted, before = data.env_steps, held(data).clone()
    (first,) = list(data.val_dataloader())
    (again,) = list(data.val_dataloader())
    assert data.env_steps == counted
    assert (held(data) == before).all()
    assert first.batch_size[0] == 3
    assert torch.equal(first["observation"], again["observation"])
    assert (first["action"] == POLICY_ACTION).all()


def test_processes_share_the_evaluation_episodes_and_run_different_ones() -> None:
    shares = [build(world_size=2, rank=rank, eval_episodes=4).episodes(4, 0) for rank in (0, 1)]
    assert [share.batch_size[0] for share in shares] == [2, 2]
    starts = [set(share["observation"][:, 0, 1].tolist()) for share in shares]
    assert len(starts[0] | starts[1]) == 4


def test_many_evaluation_episodes_run_in_waves_of_few_copies_each_from_a_start_of_its_own(monkeypatch) -> None:
    made = []

    def counted(environment: GymnasiumEnvironment, num_envs: int) -> EnvBase:
        made.append(num_envs)
        return build_environment(environment, num_envs)

    monkeypatch.setattr(episodes, "_MOST_COPIES", 3)
    monkeypatch.setattr(episodes, "build_environment", counted)
    data = build(GymnasiumEnvironment("ToyCounting-v0", options={"length": None}), test_episodes=7)
    (steps,) = list(data.test_dataloader())
    assert made == [3]
    assert steps.batch_size == (7, int(steps["mask"].sum(1).max()))
    assert len(set(steps["observation"][:, 0, 1].tolist())) == 7
    # An episode ends where its flag is first true, and its step k is rewarded with k.
    lengths = steps["mask"].sum(1)
    assert len(lengths.unique()) > 1
    for episode, length in zip(steps, lengths.tolist(), strict=True):
        assert bool(episode["next", "done"][length - 1])
        assert not bool(episode["next", "done"][: length - 1].any())
    returns = torch.where(steps["mask"], steps["next", "reward"][..., 0], 0.0).sum(1)
    assert returns.tolist() == [length * (length + 1) / 2 for length in lengths.tolist()]
    data.teardown("test")


def test_tests_start_where_no_evaluation_does() -> None:
    data = build(eval_episodes=4, test_episodes=4)
    (evaluated,), (tested,) = list(data.val_dataloader()), list(data.test_dataloader())
    starts = [set(steps["observation"][:, 0, 1].tolist()) for steps in (evaluated, tested)]
    assert len(starts[0] | starts[1]) == 8


def test_opening_a_loader_leaves_the_training_noise_alone() -> None:
    data = build(eval_episodes=1)
    before = torch.get_rng_state()
    iter(data.val_dataloader())
    iter(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)
