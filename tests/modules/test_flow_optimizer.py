from typing import Any

import pytest
import torch

from flowmatch_rl.modules import FlowOptimizer


def test_the_optimizer_has_the_settings() -> None:
    weights = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = FlowOptimizer(learning_rate=0.5, weight_decay=0.25, epsilon=0.125).build(weights)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["eps"]) == (0.5, 0.25, 0.125)
    assert group["params"] == weights


def test_the_learning_rate_falls_along_half_a_cosine_or_stays() -> None:
    cosine, constant = FlowOptimizer(0.5, "cosine"), FlowOptimizer(0.5, "constant")
    rates = [cosine.rate(step, 100) for step in (0, 25, 50, 100, 130)]
    assert rates == pytest.approx([0.5, 0.25 * (1.0 + 0.5**0.5), 0.25, 0.0, 0.0])
    assert constant.rate(70, 100) == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"epsilon": 0.0}, "epsilon must be positive, got 0.0"),
        ({"decay": "linear"}, "decay must be one of constant, cosine, got 'linear'"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowOptimizer(**options)
