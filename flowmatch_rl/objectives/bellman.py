"""Temporal-difference learning of action values."""

from torch import Tensor

from flowmatch_rl.shapes import check_same_shape, check_shape


def bellman_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: float) -> Tensor:
    """One-step target ``reward + discount (1 - terminated) next_value``.

    Args:
        reward: Reward, shape (B,).
        terminated: Whether the arrival state is terminal, boolean, shape (B,). A time limit is not: it bootstraps.
        next_value: Value of the arrival state, shape (B,).
        discount: Discount per environment step, in [0, 1).

    Returns:
        Target, shape (B,).

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(reward=reward, terminated=terminated, next_value=next_value)
    return reward + discount * next_value.masked_fill(terminated, 0.0)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Squared error of every member of an ensemble against one target.

    Args:
        values: Action values of the members, shape (M, B).
        target: Target, detached, shape (B,).

    Returns:
        Loss per sample, mean over the members, shape (B,).

    Raises:
        ValueError: If the shapes do not fit.
    """
    check_shape("values", values, (values.shape[0], *target.shape))
    return (values - target).square().mean(0)
