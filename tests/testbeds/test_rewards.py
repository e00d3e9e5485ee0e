import json
import math
import pickle

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from flowmatch_rl.testbeds import (
    BoxReward,
    CirculationReward,
    FunctionReward,
    GoalReward,
    LinearReward,
    QuadraticReward,
    SpeedReward,
    SumReward,
)
from flowmatch_rl.types import Reward
from tests.combinations import one_test
from tests.oracles import F64, normal, stratified_normal


def height(values: Tensor) -> Tensor:
    """A user's function: the column named first."""
    return values[..., 0]


def shapeless(values: Tensor) -> Tensor:
    """A user's function that forgets to drop the last dimension."""
    return values


REWARDS: list[Reward] = [
    GoalReward(columns=("x", "y"), goal=(1.0, -0.5), radius=0.5),
    GoalReward(columns=("y",), goal=(0.0,), radius=0.0, margin=1.5),
    BoxReward(low=(None, -0.5), high=(0.7, None)),
    LinearReward(columns=("vx", "x"), weights=(2.0, -1.0), bias=0.25),
    QuadraticReward(columns=("x", "vy"), center=(0.5, 1.0), weights=(1.0, 0.0), bias=3.0),
    CirculationReward(),
    CirculationReward(center=(0.5, -0.25), clockwise=False, scale=2.0),
    SpeedReward(),
    SumReward(rewards=(SpeedReward(scale=2.0), LinearReward(columns=("x",), weights=(1.0,))), weights=(0.5, -1.0)),
    FunctionReward(function="tests.testbeds.test_rewards:height", columns=("y", "x")),
]
"""Members of the family."""

STATE = ("vy", "x", "angle", "y", "vx")
"""Columns in an order of no reward, with one that none looks at."""


def of(reward: Reward, *values: float) -> float:
    return reward.of_columns(torch.tensor(values, dtype=F64)).item()


def parsed(config: dict) -> Reward:
    """A reward as a configuration file makes it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--reward", type=Reward)
    return parser.instantiate(parser.parse_object({"reward": json.loads(json.dumps(config))})).reward


def config_of(reward: Reward) -> dict:
    """The configuration of a reward: its class and its fields, those that are rewards likewise."""

    def plain(value: object) -> object:
        if isinstance(value, Reward):
            return config_of(value)
        return [plain(entry) for entry in value] if isinstance(value, tuple) else value

    fields = {name: plain(getattr(reward, name)) for name in type(reward).__dataclass_fields__}
    return {"class_path": f"flowmatch_rl.testbeds.{type(reward).__name__}", "init_args": fields}


@one_test
@pytest.mark.parametrize("reward", REWARDS, ids=repr)
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)], ids=str)
def test_a_reward_has_the_shape_of_the_batch_and_the_type_of_the_state(reward: Reward, batch: tuple[int, ...]) -> None:
    for dtype in (torch.float32, F64):
        states = normal(*batch, len(STATE), seed=0, dtype=dtype)
        assert reward.evaluate(states, STATE).shape == batch
        assert reward.evaluate(states, STATE).dtype == dtype


@pytest.mark.parametrize("reward", REWARDS, ids=repr)
def test_a_reward_does_not_depend_on_the_order_of_the_columns_nor_on_others(reward: Reward) -> None:
    states = normal(50, len(STATE), seed=1)
    named = {name: states[:, i] for i, name in enumerate(STATE)}
    alone = torch.stack([named[name] for name in reward.needed_columns], -1)
    torch.testing.assert_close(reward.evaluate(states, STATE), reward.of_columns(alone), rtol=0.0, atol=0.0)
    torch.testing.assert_close(reward.evaluate(states.flip(-1), STATE[::-1]), reward.of_columns(alone))


@pytest.mark.parametrize("reward", REWARDS, ids=repr)
def test_a_reward_survives_pickling_and_configuration(reward: Reward) -> None:
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert parsed(config_of(reward)) == reward


@one_test
@pytest.mark.parametrize("reward", REWARDS, ids=repr)
def test_a_reward_refuses_states_without_its_columns_and_values_of_another_kind(reward: Reward) -> None:
    missing = reward.needed_columns[-1]
    others = tuple(name for name in STATE if name != missing)
    with pytest.raises(ValueError, match=f"needs the column '{missing}'"):
        reward.evaluate(normal(3, len(others), seed=0), others)
    count = len(reward.needed_columns)
    with pytest.raises(ValueError, match="expected values of shape"):
        reward.of_columns(normal(3, count + 1, seed=0))
    with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.int64"):
        reward.of_columns(torch.zeros(3, count, dtype=torch.int64))


@one_test
@pytest.mark.parametrize("reward", REWARDS, ids=repr)
def test_a_reward_is_finite_where_everything_is_zero(reward: Reward) -> None:
    values = torch.zeros(len(reward.needed_columns), dtype=F64)
    assert torch.isfinite(reward.of_columns(values))


def test_a_goal_pays_within_its_radius_and_half_as_much_in_the_middle_of_its_margin() -> None:
    reward = GoalReward(columns=("x", "y"), goal=(1.0, 2.0), radius=0.5, margin=0.2)
    for angle in (0.0, 1.0, 4.0):

        def at(distance: float, angle: float = angle) -> float:
            return of(reward, 1.0 + distance * math.cos(angle), 2.0 + distance * math.sin(angle))

        assert at(0.0) == at(0.49) == 1.0
        assert at(0.6) == pytest.approx(0.5)
        assert at(0.55) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
        assert at(0.7) == pytest.approx(0.0, abs=1e-12)
        assert at(5.0) == pytest.approx(0.0, abs=1e-12)


def test_a_goal_without_a_margin_pays_all_or_nothing_and_its_edge_belongs_to_it() -> None:
    reward = GoalReward(columns=("x",), goal=(0.0,), radius=0.5)
    assert [of(reward, x) for x in (-0.51, -0.5, 0.0, 0.5, 0.51)] == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_a_margin_is_smooth_and_falls() -> None:
    reward = GoalReward(columns=("x",), goal=(0.0,), radius=0.5, margin=1.0)
    x = torch.linspace(0.0, 2.0, 2001, dtype=F64, requires_grad=True)
    paid = reward.of_columns(x[:, None])
    (slope,) = torch.autograd.grad(paid.sum(), x)
    assert slope.max() <= 0.0
    assert slope.diff().abs().max() < 1e-2
    assert slope.min().item() == pytest.approx(-0.5 * math.pi, rel=1e-5)


def test_a_box_is_closed_and_a_missing_bound_is_no_bound() -> None:
    reward = BoxReward(low=(-1.0, None), high=(2.0, 0.0))
    assert of(reward, -1.0, 0.0) == of(reward, 2.0, -1e9) == 1.0
    assert of(reward, -1.001, 0.0) == of(reward, 2.001, 0.0) == of(reward, 0.0, 0.001) == 0.0
    assert of(BoxReward(low=(None,), high=(None,), columns=("x",)), math.inf) == 1.0


def test_a_linear_reward_is_the_weighted_sum_of_its_columns_and_the_bias() -> None:
    assert of(LinearReward(columns=("x", "y"), weights=(2.0, -3.0), bias=0.25), 1.5, 2.0) == -2.75


def test_a_quadratic_reward_has_its_closed_form_under_a_normal_law() -> None:
    reward = QuadraticReward(columns=("x",), center=(0.5,), weights=(2.0,), bias=1.0)
    x = 2.0 + 0.3 * stratified_normal(20_000)
    assert reward.of_columns(x[:, None]).mean().item() == pytest.approx(1.0 - 2.0 * (1.5**2 + 0.3**2), abs=1e-4)
    assert of(reward, 0.5) == 1.0


@pytest.mark.parametrize("clockwise", [True, False])
def test_running_around_a_circle_pays_the_speed_in_one_sense_and_nothing_in_the_other(clockwise: bool) -> None:
    reward = CirculationReward(center=(1.0, -2.0), clockwise=clockwise, scale=4.0)
    angle = torch.linspace(0.0, 6.0, 13, dtype=F64)
    outward = torch.stack([angle.cos(), angle.sin()], -1)
    ahead = torch.stack([-angle.sin(), angle.cos()], -1)  # counter-clockwise
    position = torch.tensor([1.0, -2.0], dtype=F64) + 3.0 * outward
    velocity = (-2.0 if clockwise else 2.0) * ahead + 5.0 * outward
    there = reward.of_columns(torch.cat([position, velocity], -1))
    torch.testing.assert_close(there, torch.full_like(there, 0.5))
    back = reward.of_columns(torch.cat([position, -velocity], -1))
    torch.testing.assert_close(back, torch.zeros_like(back), rtol=0.0, atol=0.0)
    assert of(reward, 1.0, -2.0, 3.0, 4.0) == 0.0


def test_speed_is_the_length_of_the_velocity_in_units_of_the_scale() -> None:
    assert of(SpeedReward(scale=2.5), 3.0, -4.0) == 2.0


def test_a_sum_is_the_weighted_sum_of_its_rewards_and_names_each_column_once() -> None:
    first, second = LinearReward(columns=("y", "x"), weights=(2.0, 3.0)), SpeedReward(columns=("x", "z"))
    states = normal(9, 3, seed=2)
    columns = ("x", "y", "z")
    parts = [reward.evaluate(states, columns) for reward in (first, second)]
    assert SumReward(rewards=(first, second)).needed_columns == ("y", "x", "z")
    torch.testing.assert_close(SumReward(rewards=(first, second)).evaluate(states, columns), parts[0] + parts[1])
    weighted = SumReward(rewards=(first, second), weights=(-1.0, 0.5))
    torch.testing.assert_close(weighted.evaluate(states, columns), -parts[0] + 0.5 * parts[1])


def test_a_function_is_given_the_columns_in_its_order() -> None:
    reward = FunctionReward(function="tests.testbeds.test_rewards:height", columns=("z", "x"))
    states = normal(5, 3, seed=3)
    torch.testing.assert_close(reward.evaluate(states, ("x", "y", "z")), states[:, 2], rtol=0.0, atol=0.0)


def test_a_function_that_returns_another_shape_is_refused() -> None:
    reward = FunctionReward(function="tests.testbeds.test_rewards:shapeless", columns=("x",))
    with pytest.raises(ValueError, match=r"must return a reward of shape \(5,\), got \(5, 1\)"):
        reward.of_columns(normal(5, 1, seed=0))
    with pytest.raises(ValueError, match=r"must return a reward of shape .*, got float"):
        FunctionReward(function="math:fsum", columns=("x",)).of_columns(normal(5, 1, seed=0))


@one_test
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("height", "package.module:function, got 'height'"),
        (":height", "package.module:function, got ':height'"),
        ("tests.testbeds.test_rewards:", "package.module:function"),
        ("tests.no_such_module:height", "cannot be imported: No module named 'tests.no_such_module'"),
        ("tests.testbeds.test_rewards:depth", "has no function 'depth'"),
        ("tests.testbeds.test_rewards:STATE", "has no function 'STATE'"),
    ],
)
def test_a_function_that_cannot_be_found_is_refused_at_once(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionReward(function=function, columns=("x",))


@one_test
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GoalReward(columns=(), goal=(), radius=1.0), "different names, at least one"),
        (lambda: GoalReward(columns=("x", "x"), goal=(0.0, 0.0), radius=1.0), "different names"),
        (lambda: LinearReward(columns="xy", weights=(0.0, 0.0)), "different names.*got 'xy'"),
        (lambda: GoalReward(columns=("x", "y"), goal=(0.0,), radius=1.0), "goal must be finite, 2 in number"),
        (lambda: GoalReward(columns=("x",), goal=(math.nan,), radius=1.0), "goal must be finite"),
        (lambda: GoalReward(columns=("x",), goal=(0.0,), radius=-1.0, margin=2.0), "at least 0 and not both 0"),
        (lambda: GoalReward(columns=("x",), goal=(0.0,), radius=0.0), "not both 0"),
        (lambda: BoxReward(low=(0.0,), high=(1.0, 1.0)), "low must hold 2 bounds"),
        (lambda: BoxReward(low=(0.0, None), high=(1.0, math.inf)), "high must be finite"),
        (lambda: BoxReward(low=(0.0, 2.0), high=(1.0, 1.0)), "got 2.0 and 1.0 for the column 'y'"),
        (lambda: LinearReward(columns=("x",), weights=(1.0, 2.0)), "weights must be finite, 1 in number"),
        (lambda: LinearReward(columns=("x",), weights=(1.0,), bias=math.inf), "bias must be finite"),
        (lambda: QuadraticReward(columns=("x",), center=(0.0,), weights=(-1.0,)), "weights must be at least 0"),
        (lambda: QuadraticReward(columns=("x",), center=(0.0, 1.0), weights=(1.0,)), "center must be finite"),
        (lambda: CirculationReward(position=("x", "vx")), "different names"),
        (lambda: CirculationReward(position=("x", "y", "z")), "position must name 2 columns"),
        (lambda: CirculationReward(center=(0.0, math.inf)), "center must be finite"),
        (lambda: CirculationReward(scale=0.0), "scale must be positive, got 0.0"),
        (lambda: SpeedReward(scale=-1.0), "scale must be positive"),
        (lambda: SumReward(rewards=()), "at least one reward"),
        (lambda: SumReward(rewards=(SpeedReward(),), weights=(1.0, 2.0)), "weights must be finite, 1 in number"),
    ],
)
def test_a_constructor_refuses_what_makes_no_sense(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
