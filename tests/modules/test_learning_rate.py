"""Learning rates that change over a run."""

import pytest
import torch

from flowmatch_rl.modules.learning_rate import cosine_decay


def test_cosine_decay_starts_at_the_given_rate_is_halved_midway_and_ends_at_zero() -> None:
    assert cosine_decay(3e-4, 0, 800) == 3e-4
    assert cosine_decay(3e-4, 400, 800) == pytest.approx(1.5e-4, rel=1e-12)
    assert cosine_decay(3e-4, 800, 800) == 0.0
    assert cosine_decay(3e-4, 900, 800) == 0.0


def test_cosine_decay_agrees_with_the_scheduler_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert cosine_decay(0.3, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
