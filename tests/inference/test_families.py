"""Families of policies cloned from data: members reach their goals, files keep them, occupancies model them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import Goals, PolicyData, collect_transitions
from flowmatch_rl.envs import ProcessEnvironment
from flowmatch_rl.inference import CheckpointPolicy, TrainedOccupancy, TrainedPolicy, load_policy
from flowmatch_rl.inference.serving import ServedPolicy, pack_policy
from flowmatch_rl.models import FlowPolicyArchitecture, Horizon
from flowmatch_rl.modules import BehaviorCloning, FlowOptimizer, OccupancyModule
from flowmatch_rl.nets import EmaSettings, VelocityArchitecture
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Euler
from flowmatch_rl.testbeds import GoalReward, MazeGoalPolicy, PointMassMaze
from flowmatch_rl.testbeds.processes.maze import free_positions
from flowmatch_rl.testbeds.processes.point_mass import HALF_SIZE

MAZE = PointMassMaze(action_repeat=4)
TINY = FlowPolicyArchitecture(
    squash=ClipSquash(), network=VelocityArchitecture(hidden_dim=64, num_blocks=2), sampler=OdeSampler(Euler(4))
)
STATES = torch.tensor([[0.1, 0.1, 0.0, 0.0], [-0.2, 0.05, 0.1, -0.1], [0.05, -0.25, 0.0, 0.2]])


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("walks") / "set")
    environment, size = ProcessEnvironment(MAZE, max_steps=60), {"num_envs": 200, "block_steps": 60}
    collect_transitions(
        environment, path, 24_000, MazeGoalPolicy(), **size, action_noise=0.2, switch_fraction=0.05, progress=False
    )
    return path


def fitted(path: str, file: Path, num_updates: int, goals: Goals | None, ckpt_path: str | None = None) -> str:
    """The checkpoint of a short training in epochs of 20 updates."""
    torch.manual_seed(0)
    data = PolicyData(path, batch_size=256, num_updates=num_updates, epoch_updates=20, goals=goals)
    ema, optimizer = EmaSettings(0.98, warm_up=True), FlowOptimizer(3e-3)
    module = BehaviorCloning(**data.dimensions, policy=TINY, ema=ema, optimizer=optimizer)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "enable_model_summary": False, "limit_val_batches": 0}
    trainer = Trainer(max_epochs=data.num_epochs, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(file)
    return str(file)


@pytest.fixture(scope="module")
def family(walks: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fitted(walks, tmp_path_factory.mktemp("family") / "family.ckpt", 600, Goals(("x", "y"), 0.9))


@pytest.fixture(scope="module")
def single(walks: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return fitted(walks, tmp_path_factory.mktemp("single") / "single.ckpt", 20, None)


@cache
def starts() -> tuple[Tensor, Tensor]:
    """States at rest, and goals in the same room or another."""
    generator = torch.Generator().manual_seed(3)
    state = MAZE.start(torch.randn(300, 4, generator=generator))
    return state, free_positions(torch.rand(300, 2, generator=generator))


def reached(policy: TrainedPolicy, goals: np.ndarray | None) -> float:
    """Fraction of the goals that are within 0.08 after 30 decisions."""
    state, wanted = starts()
    for _ in range(30):
        action = torch.as_tensor(policy(state.numpy(), goals))
        state, _ = MAZE.step(state, action, torch.zeros(len(state), 4))
    return float(((state[:, :2] - wanted).norm(dim=-1) < 0.08).double().mean())


def test_members_reach_their_goals_and_the_clone_without_goals_does_not(family: str, single: str) -> None:
    _, wanted = starts()
    with_goals = reached(load_policy(family), wanted.numpy())
    assert with_goals > 0.3
    assert reached(load_policy(family), wanted.roll(1, 0).numpy()) < 0.5 * with_goals
    assert reached(load_policy(single), None) < 0.5 * with_goals


def test_a_member_of_the_checkpoint_acts_as_the_loaded_policy_with_its_goal(family: str) -> None:
    policy, goal = load_policy(family), np.array([0.2, -0.1], np.float32)
    wanted = policy(STATES.numpy(), goal)
    assert wanted.shape == (3, 2)
    members = torch.as_tensor(policy.embedding(np.tile(goal, (3, 1))))
    action = CheckpointPolicy(family).act(STATES, members, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(action.numpy(), wanted, atol=1e-6)
    again = load_policy(family)(STATES.numpy(), np.tile(goal, (3, 1)))
    np.testing.assert_allclose(again, wanted, atol=1e-6)
    assert not np.allclose(load_policy(family)(STATES.numpy(), -goal), wanted, atol=1e-3)


def test_a_family_is_packed_with_its_goals_as_an_input(family: str, tmp_path: Path) -> None:
    path, states = tmp_path / "policy.ckpt", STATES.numpy()
    described = pack_policy(Path(family), path, states)
    goal = np.array(described["example"]["goal"], np.float32)
    assert (described["inputs"], described["metadata"]["goal_columns"]) == ({"observation": 4, "goal": 2}, ["x", "y"])
    assert path.stat().st_size < 0.7 * Path(family).stat().st_size
    served = ServedPolicy(load_policy(path))
    np.testing.assert_array_equal(
        served.predict({"observation": states, "goal": goal}), load_policy(family)(states, goal)
    )


@pytest.mark.parametrize("batch", [(3,), (2, 3)], ids=str)
def test_members_are_drawn_from_the_goals_of_the_data(family: str, walks: str, batch: tuple[int, ...]) -> None:
    policy = CheckpointPolicy(family)
    assert policy.embedding_dim == 2
    drawn = policy.embeddings(torch.rand(2_000, 2, generator=torch.Generator().manual_seed(0)))
    schema = PolicyData(walks, goals=Goals(("x", "y"))).dimensions["goal_schema"]
    assert schema.restore(drawn).abs().max() <= HALF_SIZE + 1e-6
    assert len(drawn.unique(dim=0)) > 1_000
    assert drawn.std(0).numpy() == pytest.approx(np.ones(2), abs=0.15)
    ends = policy.embeddings(torch.tensor([[0.0, 0.5], [1.0 - 2.0**-24, 0.5]]))
    assert bool(ends.isfinite().all())
    action = policy.act(STATES.expand(*batch, 4), drawn[:3].expand(*batch, 2))
    assert action.shape == (*batch, 2)
    assert action.abs().max() <= 1.0


def test_a_family_without_a_goal_and_a_goal_that_does_not_fit_are_refused_in_one_line(family: str, single: str) -> None:
    policy, states = load_policy(family), STATES.numpy()
    for call, message in (
        (lambda: policy(states), r"family of policies, one for each goal \(x, y\): call policy\(observation, goal\)"),
        (lambda: policy(states, np.zeros(3)), r"expected a goal of shape \(\.\.\., 2\), its entries x, y, got \(3,\)"),
        (lambda: policy(states, np.zeros((2, 2))), r"expected a goal of shape \(3, 2\), got \(2, 2\)"),
        (lambda: policy(states, np.array([0.0, np.nan])), "expected a goal of finite numbers"),
        (lambda: load_policy(single)(states, np.zeros(2)), "holds a single policy, which takes no goal"),
        (lambda: load_policy(single).embedding(np.zeros(2)), "holds a single policy, which takes no goal"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="expected an embedding of dimension 2"):
        CheckpointPolicy(family).act(STATES)


def test_a_resumed_run_keeps_its_units_with_the_goals_of_the_data_it_goes_on_with(walks: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    collect_transitions(ProcessEnvironment(MAZE, max_steps=5), other, 500, num_envs=100, progress=False)
    goals = Goals(("x", "y"))
    first = fitted(walks, tmp_path / "first.ckpt", 20, goals)
    again = fitted(other, tmp_path / "again.ckpt", 40, goals, ckpt_path=first)
    before, after = (torch.load(path, weights_only=True) for path in (first, again))
    assert after["global_step"] == 40
    schema = before["hyper_parameters"]["goal_schema"]
    assert after["hyper_parameters"]["goal_schema"] == schema
    assert schema != PolicyData(other, goals=goals).dimensions["goal_schema"]
    states = PolicyData(other, goals=goals).store.transitions["next", "observation"][:, :2]
    places = schema.restore(after["state_dict"]["goal_table.table"])
    assert torch.cdist(places, states.double()).amin(1).max() < 1e-6
    for columns, words in ((("y", "x"), "y, x"), (None, "none")):
        with pytest.raises(
            UserError, match=rf"the checkpoint has goals \(x, y\), the data \({words}\); see data.goals"
        ):
            fitted(walks, tmp_path / "refused.ckpt", 40, columns and Goals(columns), ckpt_path=first)


def test_a_checkpoint_from_before_there_were_goals_still_acts(single: str, tmp_path: Path) -> None:
    content = torch.load(single, weights_only=True)
    del content["hyper_parameters"]["goal_schema"]
    assert not any(name.startswith("goal") for name in content["state_dict"])
    torch.save(content, tmp_path / "old.ckpt")
    old, new = (load_policy(path)(STATES.numpy()) for path in (tmp_path / "old.ckpt", single))
    np.testing.assert_array_equal(old, new)
    assert CheckpointPolicy(str(tmp_path / "old.ckpt")).embedding_dim == 0


def test_an_occupancy_models_the_family_and_plans_with_its_members(family: str) -> None:
    schema = TableSchema(MAZE.columns, (0.0,) * 4, (0.17, 0.17, 0.2, 0.2))
    policy, small = CheckpointPolicy(family), VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8)
    torch.manual_seed(0)
    module = OccupancyModule(schema, 2, policy=policy, network=small, horizon=Horizon(0.9))
    assert module.model.inputs.embedding_dim == 2
    model, goals = TrainedOccupancy(module.model), np.array([[0.2, 0.2], [-0.2, -0.2], [0.2, -0.1]])
    candidates = load_policy(family).embedding(goals)
    plan = model.plan(GoalReward(("x", "y"), (0.2, 0.2), 0.05), STATES.numpy(), candidates, number=8)
    assert plan.action.shape == (3, 2)
    assert plan.values.shape == (3, 3)
    assert set(plan.index) <= {0, 1, 2}
