"""Bounds of actions and columns of tables map between a model's units and those of its users."""

import dataclasses

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.schema import ActionBounds, TableSchema


def test_bounds_map_to_minus_one_and_one_and_back() -> None:
    bounds = ActionBounds((-2.0, 0.0), (2.0, 5.0))
    action = torch.tensor([[-2.0, 0.0], [2.0, 5.0], [0.0, 2.5], [1.0, 4.0]], dtype=torch.float64)
    unit = bounds.standardise(action)
    assert unit.tolist() == [[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, pytest.approx(0.6)]]
    torch.testing.assert_close(bounds.restore(unit), action)


def test_bounds_that_are_not_set_change_nothing() -> None:
    action = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(ActionBounds.unit(4).restore(action), action)


@pytest.mark.parametrize(("low", "high"), [((0.0,), (1.0, 2.0)), ((1.5,), (1.0,)), ((float("nan"),), (1.0,))])
def test_bounds_that_do_not_fit_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="action_low"):
        ActionBounds(low, high)


def test_entry_with_equal_bounds_is_zero_for_models_and_keeps_its_value() -> None:
    bounds = ActionBounds((-2.0, 0.5), (2.0, 0.5))
    unit = bounds.standardise(torch.tensor([[1.0, 0.5], [1.0, 0.6], [1.0, 0.4]]))
    assert unit.tolist() == [[0.5, 0.0], [0.5, float("inf")], [0.5, -float("inf")]]
    assert bounds.restore(torch.tensor([[0.5, 0.0], [0.5, 0.9]])).tolist() == [[1.0, 0.5], [1.0, 0.5]]


def test_actions_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\), got \(3, 1\)"):
        ActionBounds((0.0, 0.0), (1.0, 1.0)).restore(torch.zeros(3, 1))


def test_columns_of_integers_come_back_as_integers_and_others_as_they_are() -> None:
    schema = TableSchema(("count", "x"), (3.0, 0.5), (2.0, 2.0), ("age", "z"), (40.0, 0.0), (10.0, 1.0))
    whole = dataclasses.replace(schema, integers=("count", "age"))
    sample = torch.tensor([[0.1, 0.1], [-0.4, 0.4]])
    assert whole.restore(sample).tolist() == [[3.0, pytest.approx(0.7)], [2.0, pytest.approx(1.3)]]
    assert whole.restore_condition(torch.tensor([[0.123, 0.123]])) == {"age": [41.0], "z": [pytest.approx(0.123)]}
    torch.testing.assert_close(schema.restore(sample)[:, 0], torch.tensor([3.2, 2.2], dtype=torch.float64))
