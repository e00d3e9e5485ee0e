"""Transitions of a data set for policies: what is drawn, held out, evaluated and refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from flowmatch_rl.batches import LENGTH, read_transition
from flowmatch_rl.checks import MissingFileError, UserError
from flowmatch_rl.data import OnlineData, OnlinePhase, PolicyData, collect_transitions
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.transitions.reader import TransitionReader
from flowmatch_rl.data.transitions.store import TransitionStore
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.models import FlowPolicyArchitecture
from flowmatch_rl.modules import BehaviorCloning, FlowQLearning, Normalisation, PolicyModule
from flowmatch_rl.nets import RunningUnits, VelocityArchitecture, moments_of
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.testbeds import LinearReward
from tests.combinations import each_value
from tests.data.toy_trajectories import TRAJECTORIES, action_at, trajectory_store

NETWORK = VelocityArchitecture(hidden_dim=16, time_features=8)


def tiny_module(data: PolicyData) -> BehaviorCloning:
    torch.manual_seed(0)
    return BehaviorCloning(**data.dimensions, policy=FlowPolicyArchitecture(squash=ClipSquash(), network=NETWORK))


def quiet(**options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@each_value
@pytest.mark.parametrize("n_steps", [1, 2, 3, 7])
def test_every_transition_is_the_one_written_down(tmp_path: Path, n_steps: int) -> None:
    store = trajectory_store(tmp_path / "set")
    reader = TransitionReader(store, n_steps, 64, seed=0)
    seen = set()
    for _ in range(8):
        batch = read_transition(reader.take())
        for row in range(64):
            i, k = (int(value) for value in batch.observation[row])
            seen.add((i, k))
            number, end = TRAJECTORIES[i]
            length = min(n_steps, number - k)
            assert int(batch.length[row]) == length
            assert batch.next_observation[row].tolist() == [i, k + length]
            assert bool(batch.terminated[row]) == (end == "terminated" and k + length == number)
            assert list(batch.rewards[row]) == [k + j if j < length else 0.0 for j in range(n_steps)]
            torch.testing.assert_close(batch.action[row], action_at(torch.tensor(float(i)), torch.tensor(float(k))))
    assert len(seen) == sum(length for length, _ in TRAJECTORIES)


def test_the_last_rows_are_held_out(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    reader = TransitionReader(store, 2, 256, seed=0, held_out=4)
    kept, drawn = reader.held_out(100), reader.take()
    assert [tuple(row) for row in kept["observation"].tolist()] == [(4.0, 3.0), (4.0, 4.0), (5.0, 0.0), (5.0, 1.0)]
    assert list(kept[LENGTH].squeeze(-1)) == [2, 1, 2, 1]
    held = {tuple(row) for row in kept["observation"].tolist()}
    assert not held & {tuple(row) for row in drawn["observation"].tolist()}
    assert len(reader.held_out(2)) == 2
    # Of two steps each, none reaches into what is held out.
    assert {tuple(row) for row in drawn["next", "observation"].tolist()} <= {
        (i, k + j) for i, k in {tuple(row) for row in drawn["observation"].tolist()} for j in (1.0, 2.0)
    }
    assert (4.0, 4.0) not in {tuple(row) for row in drawn["next", "observation"].tolist()}


def test_a_chunk_holds_the_actions_of_its_steps(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set", [(4, "truncated"), (3, "terminated"), (5, "truncated")])
    reader = TransitionReader(store, 3, 64, seed=0, chunk=3)
    batch = read_transition(reader.take())
    assert batch.action.shape == (64, 3)
    seen = {(int(i), int(k)) for i, k in batch.observation}
    assert seen == {(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)}
    for row in range(64):
        i, k = (int(value) for value in batch.observation[row])
        wanted = [float(action_at(torch.tensor(float(i)), torch.tensor(float(k + j)))) for j in range(3)]
        assert batch.action[row].tolist() == pytest.approx(wanted)
        assert list(batch.rewards[row]) == [k, k + 1, k + 2]
        assert list(batch.next_observation[row]) == [i, k + 3]
        assert bool(batch.terminated[row]) == (i == 1)
        assert int(batch.length[row]) == 3
    held = TransitionReader(store, 3, 64, seed=0, held_out=5, chunk=3).held_out(100)
    assert [tuple(row) for row in held["observation"].tolist()] == [(2.0, 0.0), (2.0, 1.0), (2.0, 2.0)]


def test_chunks_are_acted_out_in_the_environment(tmp_path: Path) -> None:
    path, environment = tmp_path / "set", GymnasiumEnvironment("Pendulum-v1")
    collect_transitions(environment, str(path), 40, num_envs=1, progress=False)
    sizes = {"num_updates": 2, "action_chunk": 3, "held_out": 0.2, "test_episodes": 2, "max_episode_steps": 7}
    data = PolicyData(str(path), environment, 4, **sizes)
    assert data.dimensions["action_dim"] == 3
    assert data.dimensions["action_bounds"].low == (-2.0, -2.0, -2.0)
    module = tiny_module(data)
    quiet(max_epochs=1).fit(module, datamodule=data)
    steps = data.episodes(2, 5)
    assert steps["action"].shape == (2, 7, 1)
    assert steps["action_chunk"].shape == (2, 7, 3)
    for step in range(7):
        torch.testing.assert_close(steps["action"][:, step, 0], steps["action_chunk"][:, step, step % 3])
        if step % 3:
            assert torch.equal(steps["action_chunk"][:, step], steps["action_chunk"][:, step - 1])


def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    whole = TransitionReader(store, 1, 8, seed=3)
    batches = [whole.take()["observation"] for _ in range(5)]
    resumed = TransitionReader(store, 1, 8, seed=3, drawn=3)
    assert torch.equal(resumed.take()["observation"], batches[3])
    assert not torch.equal(TransitionReader(store, 1, 8, seed=4).take()["observation"], batches[0])


def test_networks_see_in_the_units_of_the_whole_data_set(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    data = PolicyData(str(tmp_path / "set"), batch_size=4, num_updates=3, held_out=0.2)
    module = FlowQLearning(**data.dimensions, normalisation=Normalisation(observations=True, temperature=True))
    quiet(max_epochs=1).fit(module, datamodule=data)
    assert module.global_step == 3
    units = module.units.observations
    assert units is not None
    wanted = moments_of(store.transitions["observation"])
    torch.testing.assert_close(units.moments, wanted, rtol=1e-12, atol=0.0)
    scale = store.transitions["next", "reward"].double().square().mean().sqrt()
    assert scale > 1.5
    assert float(module.units.temperature_unit) == pytest.approx(float(scale), rel=1e-6)


def test_the_scale_of_a_constant_reward_is_its_size(tmp_path: Path) -> None:
    trajectory_store(tmp_path / "set")
    costs = LinearReward(columns=TransitionStore.open(tmp_path / "set").info.columns[:1], weights=(0.0,), bias=-3.0)
    data = PolicyData(str(tmp_path / "set"), held_out=0.2, reward=costs)
    units = RunningUnits(1)
    units.add(data.reward_moments)
    assert float(units.root_mean_square) == 3.0


def test_without_an_environment_the_held_out_loss_is_measured(tmp_path: Path) -> None:
    trajectory_store(tmp_path / "set", TRAJECTORIES * 5)
    data = PolicyData(str(tmp_path / "set"), batch_size=16, num_updates=4, epoch_updates=2, held_out=0.2)
    module, trainer = tiny_module(data), quiet(max_epochs=data.num_epochs)
    trainer.fit(module, datamodule=data)
    assert module.monitor == ("val/loss", "min")
    first = float(trainer.callback_metrics["val/loss"])
    trainer.validate(module, datamodule=data, verbose=False)
    assert float(trainer.callback_metrics["val/loss"]) == first  # with noise of its own
    trainer.test(module, datamodule=data, verbose=False)
    assert set(trainer.callback_metrics) == {"test/loss", "test/energy_score", "step"}
    assert data.state_dict() == {"drawn": 4, "epoch_batches": 2}
    assert data.dimensions["action_bounds"].low == (-1.0,)


def test_episodes_and_held_out_losses_are_measured_in_an_environment(tmp_path: Path) -> None:
    path, environment = tmp_path / "set", GymnasiumEnvironment("Pendulum-v1")
    collect_transitions(environment, str(path), 20, progress=False)
    data = PolicyData(
        str(path), environment, 4, num_updates=2, held_out=0.5, eval_episodes=2, test_episodes=3, max_episode_steps=5
    )
    module, trainer = tiny_module(data), quiet(max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert module.monitor == ("val/return_mean", "max")
    assert {"val/loss", "val/energy_score", "val/return_mean"} <= set(trainer.callback_metrics)
    trainer.test(module, datamodule=data, verbose=False)
    assert float(trainer.callback_metrics["test/episodes"]) == 3.0
    assert data.dimensions["action_bounds"].high == (2.0,)
    assert any("held out" in line for line in module.result_lines({"test/loss": 1.0}))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    shuffled = trajectory_store(tmp_path / "shuffled", ordered=False)
    with pytest.raises(MissingFileError, match="there is no data set"):
        PolicyData(str(tmp_path / "none"))
    with pytest.raises(UserError, match=re.escape("n_steps 3 needs trajectories; ")):
        TransitionReader(shuffled, 3, 4, seed=0)
    assert len(TransitionReader(shuffled, 1, 4, seed=0).take()) == 4
    with pytest.raises(UserError, match=r"16 of the 16 rows of .* are held out; none are left"):
        TransitionReader(store, 1, 4, seed=0, held_out=16)
    with pytest.raises(UserError, match=r"held_out must .*got 0\.6"):
        PolicyData(str(tmp_path / "set"), held_out=0.6)
    with pytest.raises(UserError, match=r"Pendulum-v1 has observations of dimension 3 .* the data set 2 "):
        PolicyData(str(tmp_path / "set"), GymnasiumEnvironment("Pendulum-v1"))
    with pytest.warns(UserWarning, match=r"2 of 6 trajectories of .* shorter than action_chunk 2: .* has 1 steps"):
        TransitionReader(store, 2, 4, seed=0, chunk=2)
    with pytest.raises(UserError, match=r"action_chunk 6 is longer than every trajectory of .*; the longest has 5"):
        TransitionReader(store, 6, 4, seed=0, chunk=6)
    told = (
        r"none of the 2 rows of .* held out has the 3 steps of action_chunk 3; raise held_out to at least 5 of the 16"
    )
    with pytest.warns(UserWarning, match="shorter"), pytest.raises(UserError, match=told):
        TransitionReader(store, 3, 4, seed=0, held_out=2, chunk=3)
    with pytest.warns(UserWarning, match="shorter"):
        assert len(TransitionReader(store, 3, 4, seed=0, held_out=5, chunk=3).held_out(9)) == 1
    with pytest.raises(UserError, match="n_steps must be 1 or action_chunk 3, got 2"):
        PolicyData(str(tmp_path / "set"), n_steps=2, action_chunk=3)
    with pytest.raises(UserError, match="episodes need an environment"):
        PolicyData(str(tmp_path / "set"), held_out=0.5).episodes(2, 0)
    with pytest.raises(UserError, match="held_out must keep a row of the 16, got 0: nothing would be evaluated"):
        PolicyData(str(tmp_path / "set"), held_out=0.0)


PENDULUM = GymnasiumEnvironment("Pendulum-v1")


def with_online_phase(path: Path) -> PolicyData:
    collect_transitions(PENDULUM, str(path), 20, progress=False)
    return PolicyData(str(path), PENDULUM, 4, num_updates=2, online=OnlinePhase(50))


def log_without_rewards(path: Path) -> PolicyData:
    trajectory_store(path, has_rewards=False)
    return PolicyData(str(path), batch_size=4, num_updates=2, held_out=0.2)


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        (FlowQLearning, log_without_rewards, "has no rewards to learn values from"),
        (
            BehaviorCloning,
            with_online_phase,
            "BehaviorCloning would imitate itself in an online phase; data.online must be null, got OnlinePhase",
        ),
        (
            BehaviorCloning,
            lambda path: OnlineData(PENDULUM, total_env_steps=40, warmup_env_steps=10, batch_size=4),
            "BehaviorCloning imitates a data set; use PolicyData, got OnlineData",
        ),
    ],
    ids=["no rewards", "online phase", "online"],
)
def test_a_trainer_refuses_what_cannot_be_learned_from_the_data(
    kind: type[PolicyModule], make: Callable[[Path], EpisodeData], message: str, tmp_path: Path
) -> None:
    data = make(tmp_path / "set")
    module, trainer = kind(**data.dimensions), quiet(max_epochs=1, limit_val_batches=0)
    with pytest.raises(UserError, match=message):
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 0
