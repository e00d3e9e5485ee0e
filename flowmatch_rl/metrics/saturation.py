"""Actions at the bounds of their box."""

from torch import Tensor

from flowmatch_rl.checks import check_range


def saturated_fraction(actions: Tensor, limit: float = 0.99) -> Tensor:
    """Fraction of the actions with an entry at a bound.

    Args:
        actions: Actions in [-1, 1], shape (N, D), N at least 1.
        limit: Magnitude above which an entry counts as at its bound, in [0, 1).

    Returns:
        Fraction in [0, 1], shape ().

    Raises:
        ValueError: If the actions have another shape.
        UserError: If ``limit`` is outside [0, 1).
    """
    _check(actions, limit)
    return (actions.abs() > limit).any(-1).float().mean()


def saturated_entries(actions: Tensor, limit: float = 0.99) -> Tensor:
    """Fraction of the entries of actions that lie at a bound.

    Args:
        actions: Actions in [-1, 1], shape (N, D), N at least 1.
        limit: Magnitude above which an entry counts as at its bound, in [0, 1).

    Returns:
        Fraction in [0, 1], shape ().

    Raises:
        ValueError: If the actions have another shape.
        UserError: If ``limit`` is outside [0, 1).
    """
    _check(actions, limit)
    return (actions.abs() > limit).float().mean()


def _check(actions: Tensor, limit: float) -> None:
    check_range("[0, 1)", limit=limit)
    if actions.dim() != 2 or len(actions) == 0:
        raise ValueError(f"expected actions of shape (N, D), N at least 1, got {tuple(actions.shape)}")
