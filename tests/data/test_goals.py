"""Goals that transitions are relabelled with: where they lie, how far ahead, and what is refused."""

import re
from pathlib import Path

import pytest
import torch

from flowmatch_rl.batches import GOAL, read_transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.data import Goals, OnlinePhase, PolicyData
from flowmatch_rl.data.transitions.reader import TransitionReader
from flowmatch_rl.envs import GymnasiumEnvironment
from flowmatch_rl.modules import BehaviorCloning, FlowQLearning
from tests.combinations import each_value
from tests.data.toy_trajectories import TRAJECTORIES, trajectory_store

BOTH = ("trajectory", "time")
LENGTHS = torch.tensor([float(length) for length, _ in TRAJECTORIES])


@each_value
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("held_out", [0, 4])
@pytest.mark.parametrize("discount", [0.0, 0.7, 0.99])
def test_every_goal_is_a_later_state_of_the_same_trajectory(
    tmp_path: Path, discount: float, held_out: int, n_steps: int
) -> None:
    store = trajectory_store(tmp_path / "set")
    reader = TransitionReader(store, n_steps, 512, seed=0, held_out=held_out, goals=Goals(BOTH, discount))
    batches = [reader.take() for _ in range(4)] + [reader.held_out(100)] * bool(held_out)
    for batch in batches:
        transition = read_transition(batch)
        assert transition.goal is not None
        (trajectory, time), (of, arrival) = transition.observation.T, transition.goal.T
        assert torch.equal(of, trajectory)
        assert (arrival > time).all()
        assert (arrival <= LENGTHS[trajectory.long()]).all()
        assert discount > 0.0 or torch.equal(arrival, time + 1.0)
    if held_out:  # the fourth trajectory goes on in the rows that are held out, from time 3
        drawn = torch.cat([batch[GOAL] for batch in batches[:-1]])
        assert drawn[drawn[:, 0] == 4.0][:, 1].max() == 3.0


def test_goals_are_geometrically_many_steps_ahead(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set", [(3, "terminated"), (50, "truncated")])
    batch = TransitionReader(store, 1, 40_000, seed=1, goals=Goals(("time",), 0.6)).take()
    trajectory, time = batch["observation"].T
    ahead = (batch[GOAL][:, 0] - time)[(trajectory == 1.0) & (time < 20.0)]
    for steps in (1, 2, 5):
        wanted = 0.4 * 0.6 ** (steps - 1)
        assert (ahead == steps).double().mean().item() == pytest.approx(wanted, abs=5.0 * (wanted / len(ahead)) ** 0.5)


def test_a_fraction_of_the_goals_is_of_any_trajectory(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set", [(10, "truncated")] * 8)
    reader = TransitionReader(store, 1, 8_000, seed=0, held_out=20, goals=Goals(BOTH, random_fraction=0.5))
    batch, kept = reader.take(), reader.held_out(20)
    other = batch[GOAL][:, 0] != batch["observation"][:, 0]
    assert other.double().mean().item() == pytest.approx(0.5 * 5 / 6, abs=0.03)
    assert set(batch[GOAL][:, 0].tolist()) == set(map(float, range(6)))
    assert set(kept[GOAL][:, 0].tolist()) == {6.0, 7.0}


def test_goals_belong_to_the_number_of_the_batch(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    whole = TransitionReader(store, 1, 64, seed=3, goals=Goals(BOTH))
    batches = [whole.take() for _ in range(3)]
    resumed = TransitionReader(store, 1, 64, seed=3, drawn=2, goals=Goals(BOTH)).take()
    assert torch.equal(resumed[GOAL], batches[2][GOAL])
    assert not torch.equal(batches[0][GOAL], batches[1][GOAL])
    plain = TransitionReader(store, 1, 64, seed=3).take()
    assert torch.equal(plain["observation"], batches[0]["observation"])
    assert read_transition(plain).goal is None


def test_the_table_holds_goals_of_training_rows_alone(tmp_path: Path) -> None:
    trajectory_store(tmp_path / "set", [(10, "truncated")] * 8)
    data = PolicyData(str(tmp_path / "set"), held_out=0.25, goals=Goals(("time", "trajectory")))
    table = data.goal_table(500)
    assert table.shape == (500, 2)
    assert torch.equal(data.goal_table(500), table)
    assert set(table[:, 1].tolist()) == set(map(float, range(6)))
    schema = data.dimensions["goal_schema"]
    assert schema.columns == ("time", "trajectory")
    assert schema.shift == (4.5, 3.5)


def test_goals_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path, shuffled = str(tmp_path / "set"), str(tmp_path / "shuffled")
    trajectory_store(Path(path), TRAJECTORIES * 4)
    trajectory_store(Path(shuffled), ordered=False)
    with pytest.raises(UserError, match="columns of goals must be different names, at least one, got"):
        Goals(())
    with pytest.raises(UserError, match=re.escape("discount must lie in [0, 1), got 1.0")):
        Goals(("time",), discount=1.0)
    with pytest.raises(UserError, match="the state has no column 'x' for a goal; it has trajectory, time"):
        PolicyData(path, goals=Goals(("x",)))
    with pytest.raises(UserError, match=r"goals \(time\) need trajectories"):
        PolicyData(shuffled, goals=Goals(("time",)))
    pendulum = GymnasiumEnvironment("Pendulum-v1")
    with pytest.raises(UserError, match=r"with data.goals data.environment must be null, got Pendulum-v1"):
        PolicyData(path, pendulum, goals=Goals(("time",)))
    with pytest.raises(UserError, match=r"with data.goals data.environment must be null"):
        PolicyData(path, pendulum, online=OnlinePhase(50), goals=Goals(("time",)))
    data, plain = PolicyData(path, goals=Goals(("time",))), PolicyData(path)
    with pytest.raises(UserError, match=r"FlowQLearning takes no goals; data.goals must be null, got Goals\(columns"):
        data.check_module(FlowQLearning(**plain.dimensions))
    with pytest.raises(UserError, match=r"BehaviorCloning is a family of policies, which needs data\.goals, got null"):
        plain.check_module(BehaviorCloning(**data.dimensions))
    data.check_module(BehaviorCloning(**data.dimensions))
