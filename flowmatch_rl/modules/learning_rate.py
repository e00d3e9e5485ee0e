"""Learning rates that change over a run."""

import math
from collections.abc import Sequence

import torch


def cosine_decay(learning_rate: float, step: int, num_steps: float) -> float:
    """Learning rate that falls from its initial value to zero along half a cosine.

    Args:
        learning_rate: Initial learning rate.
        step: Gradient steps taken so far, at least 0; beyond ``num_steps`` the rate stays at zero.
        num_steps: Gradient steps of the run, positive.

    Returns:
        Learning rate of the next step.
    """
    return learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / num_steps)))


def use_stated_options(
    optimizer: torch.optim.Optimizer, stated: torch.optim.Optimizer, names: Sequence[str] = ("lr", "weight_decay")
) -> None:
    """Give an optimizer the options of another, such as one made again.

    A checkpoint restores those that it was written with, also where the resumed run states others.

    Args:
        optimizer: Optimizer whose groups are changed.
        stated: Optimizer of the same groups, whose options are wanted.
        names: Names of the options: not ``lr`` where a schedule sets it.
    """
    for group, wanted in zip(optimizer.param_groups, stated.param_groups, strict=True):
        group.update({name: wanted[name] for name in names})
