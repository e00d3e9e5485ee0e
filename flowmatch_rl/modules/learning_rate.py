"""Learning rates that change over a run."""

import math


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
