"""A trained occupancy outside training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import TrainedOccupancy, load_occupancy
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import OccupancyModule
from flowmatch_rl.objectives import TD2CFM, TDDD
from flowmatch_rl.paths import AffinePath, VariancePreservingSchedule
from flowmatch_rl.schema import ActionBounds, TableSchema
from flowmatch_rl.testbeds import LinearReward, MazeGoalPolicy, SumReward
from tests.combinations import one_test
from tests.modules.occupancy_toys import PLANE, PLANE_POLICY, occupancy

LOW, HIGH = (-2.0, 0.0), (2.0, 10.0)
BOUNDS = ActionBounds(LOW, HIGH)
FIRST = LinearReward(("x",), (1.0,))
MAZE = TableSchema(("x", "y", "vx", "vy"), (0.0, 0.0, 0.0, 0.0), (0.1, 0.1, 0.3, 0.3))
DIFFUSION = {"objective": TDDD(), "path": AffinePath(VariancePreservingSchedule()), "t_min": 2e-3}


def states(*batch: int, schema: TableSchema = PLANE) -> np.ndarray:
    unit = np.random.default_rng(0).normal(size=(*batch, schema.sample_dim))
    return unit * np.array(schema.scale) + np.array(schema.shift)


def goals(bounds: ActionBounds | None = None, **options: Any) -> TrainedOccupancy:
    """A model of the policies that go to a point of the maze."""
    return TrainedOccupancy(occupancy(MAZE, policy=MazeGoalPolicy(), **options).model, bounds)


def checkpoint(module: OccupancyModule, folder: Path) -> Path:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "occupancy.ckpt")
    return folder / "occupancy.ckpt"


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)
def test_answers_have_the_batch_shape_of_the_states(batch) -> None:
    model = TrainedOccupancy(occupancy().model)
    state, action = states(*batch), np.zeros((*batch, 2))
    assert model.columns == ("x", "y", "speed")
    for given in (None, action):
        assert model.sample(5, state, given).shape == (*batch, 5, 3)
        value = model.value(FIRST, state, given, number=6)
        assert value.value.shape == value.standard_error.shape == batch
    plan = goals().plan(LinearReward(("x",), (1.0,)), states(*batch, schema=MAZE), np.zeros((3, 2)), number=4)
    assert plan.action.shape == (*batch, 2)
    assert plan.index.shape == batch
    assert plan.values.shape == (*batch, 3)


def test_actions_are_in_the_unit_of_the_environment() -> None:
    unit = np.random.default_rng(1).uniform(-1, 1, (6, 2)).astype(np.float32)
    outer = np.array(LOW) + (unit + 1.0) / 2.0 * (np.array(HIGH) - np.array(LOW))
    plain, scaled = TrainedOccupancy(occupancy().model), TrainedOccupancy(occupancy().model, BOUNDS)
    for ask in (
        lambda model, action: model.sample(4, states(6), action),
        lambda model, action: model.log_prob(states(6), states(6), action),
        lambda model, action: model.value(FIRST, states(6), action, number=4).value,
    ):
        np.testing.assert_allclose(ask(scaled, outer), ask(plain, unit), rtol=1e-4, atol=1e-4)


def test_planned_action_is_that_of_the_chosen_member_in_the_unit_of_the_environment() -> None:
    model = goals(BOUNDS)
    state, members = states(5, schema=MAZE), np.random.default_rng(2).uniform(-0.2, 0.2, (4, 2))
    plan = model.plan(LinearReward(("x",), (1.0,)), state, members, number=8)
    assert np.array_equal(plan.index, plan.values.argmax(-1))
    chosen = torch.tensor(members[plan.index], dtype=torch.float32)
    unit = MazeGoalPolicy().act(torch.tensor(state, dtype=torch.float32), chosen).numpy()
    wanted = np.array(LOW) + (unit + 1.0) / 2.0 * (np.array(HIGH) - np.array(LOW))
    np.testing.assert_allclose(plan.action, wanted, rtol=1e-5, atol=1e-5)


def test_value_without_action_is_that_of_the_policys_own() -> None:
    state = states(4)
    action = PLANE_POLICY.act(torch.tensor(state, dtype=torch.float32)).numpy()
    own, given = (TrainedOccupancy(occupancy().model).value(FIRST, state, a, number=8).value for a in (None, action))
    np.testing.assert_allclose(own, given, rtol=1e-5)


@pytest.mark.parametrize("first_state", ["arrival", "current"])
def test_function_of_numpy_and_reward_by_name_have_the_same_value(first_state) -> None:
    mine = LinearReward(("speed", "x"), (1.0, 2.0), bias=3.0)
    models = [TrainedOccupancy(occupancy(horizon=Horizon(0.9, first_state=first_state)).model) for _ in range(2)]
    by_name = models[0].value(mine, states(4), number=8)
    by_function = models[1].value(lambda x: x[..., 2] + 2.0 * x[..., 0] + 3.0, states(4), number=8)
    np.testing.assert_allclose(by_function.value, by_name.value, rtol=1e-5)
    np.testing.assert_allclose(by_function.standard_error, by_name.standard_error, rtol=1e-4)


def test_value_is_the_mean_reward_of_samples_times_the_horizon() -> None:
    module = occupancy(horizon=Horizon(0.75)).model
    futures = TrainedOccupancy(module, seed=3).sample(50, states(4))
    value = TrainedOccupancy(module, seed=3).value(FIRST, states(4), number=50)
    np.testing.assert_allclose(value.value, futures[..., 0].mean(-1) * 4.0, rtol=1e-4)
    error = futures[..., 0].std(-1, ddof=1) * 4.0 / 50**0.5
    np.testing.assert_allclose(value.standard_error, error, rtol=1e-4)


def test_seed_repeats_the_answers_and_the_global_noise_stays() -> None:
    module, before = occupancy().model, torch.get_rng_state()
    first, again, other = (TrainedOccupancy(module, seed=seed).sample(3, states(2)) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [
        {"rewards": {"mine": SumReward((FIRST, FIRST))}, "objective": TD2CFM(), "columns": ["x", "speed"]},
        {"horizon": Horizon(0.9, 0.5, consistency=0.25)},
        DIFFUSION,
        {"policy": None},
    ],
    ids=["rewards", "horizons", "diffusion", "no policy"],
)
def test_loaded_model_answers_as_the_saved_one(options, tmp_path) -> None:
    module = occupancy(**options, action_bounds=BOUNDS)
    path = checkpoint(module, tmp_path)
    torch.load(path, weights_only=True)
    loaded = load_occupancy(path)
    assert loaded.model.policy == module.model.policy
    saved = TrainedOccupancy(module.model, BOUNDS)
    asked = [model.sample(4, states(3), np.ones((3, 2))) for model in (saved, loaded)]
    assert np.array_equal(asked[0], asked[1])


def test_discounts_of_a_model_of_many_horizons_give_other_futures() -> None:
    module = occupancy(horizon=Horizon(0.9, 0.5)).model
    drawn = [TrainedOccupancy(module).sample(4, states(3), discount=discount) for discount in (None, 0.9, 0.6)]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])


@one_test
@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda model: model.sample(3, np.zeros(4)), r"state of shape \(\.\.\., 3\), got \(4,\)"),
        (lambda model: model.sample(3, np.float64(1.0)), r"state of shape \(\.\.\., 3\), got \(\)"),
        (lambda model: model.sample(3, np.zeros(3), np.zeros(1)), r"action of shape \(2\), got \(1,\)"),
        (lambda model: model.sample(3, np.zeros(3), np.zeros((4, 2))), r"action of shape \(2\), got \(4, 2\)"),
        (lambda model: model.sample(3, np.zeros((4, 3)), np.zeros(2)), r"action of shape \(4, 2\), got \(2,\)"),
        (lambda model: model.sample(3, np.zeros(3), embedding=np.zeros(2)), r"embedding of shape \(0\)"),
        (lambda model: model.log_prob(np.zeros((2, 2)), np.zeros((2, 3))), "3"),
        (lambda model: model.sample(3, np.zeros(3), discount=0.5), "discount 0.9, got 0.5"),
        (lambda model: model.value(LinearReward(("z",), (1.0,)), np.zeros(3)), "'z'.*x, y, speed"),
    ],
    ids=["state", "number", "action", "actions", "states", "embedding", "log_prob", "discount", "reward"],
)
def test_what_does_not_fit_is_refused(ask, words) -> None:
    with pytest.raises(ValueError, match=words):
        ask(TrainedOccupancy(occupancy().model, BOUNDS))


def test_family_needs_a_member() -> None:
    with pytest.raises(ValueError, match="embedding"):
        goals().sample(3, np.zeros(4))
    with pytest.raises(ValueError, match=r"candidates of shape \(\.\.\., 2\), got \(3,\)"):
        goals().plan(LinearReward(("x",), (1.0,)), np.zeros(4), np.zeros(3))


def test_model_without_a_policy_needs_actions() -> None:
    model = TrainedOccupancy(occupancy(policy=None).model)
    for ask in (lambda: model.sample(3, np.zeros(3)), lambda: model.value(FIRST, np.zeros(3))):
        with pytest.raises(ValueError, match="expected actions"):
            ask()
    with pytest.raises(ValueError, match="planning needs"):
        model.plan(FIRST, np.zeros(3), np.zeros((2, 2)))


def test_planning_with_the_current_state_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="first_state 'arrival'"):
        goals(horizon=Horizon(0.9, first_state="current")).plan(FIRST, np.zeros(4), np.zeros((2, 2)))


def test_missing_file_raises(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        load_occupancy(tmp_path / "none.ckpt")


def test_a_discount_above_the_models_chains_its_futures() -> None:
    model = TrainedOccupancy(occupancy(horizon=Horizon(0.5)).model)
    assert model.sample(5, states(2, 3), discount=0.9, endless=True).shape == (2, 3, 5, 3)
    value = model.value(lambda state: 0.0 * state[..., 0] + 2.0, states(4), discount=0.9, number=8, endless=True)
    np.testing.assert_allclose(value.value, 20.0, rtol=1e-4)
    with pytest.raises(UserError, match="does not know which states are terminal"):
        model.sample(5, states(2), discount=0.9)
