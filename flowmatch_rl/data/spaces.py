"""Dimensions and bounds that a data set and an environment share."""

import dataclasses

from flowmatch_rl.checks import UserError
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.envs.building import Spaces, examine
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.schema import ActionBounds, Interface


def shared_spaces(info: StoreInfo, environment: Environment | None) -> Spaces:
    """Dimensions and bounds of a data set, which the environment of its evaluations must share.

    Args:
        info: Description of the data set.
        environment: The environment, whose bounds are returned; None for those of the data set, [-1, 1] where they are
            not known.

    Raises:
        UserError: If observations, actions or the bounds of the actions differ.
    """
    if environment is None:
        bounds = info.action_bounds or ActionBounds.unit(info.action_dim)
        return Spaces(info.observation_dim, info.action_dim, bounds, _interface(info, None))
    spaces, columns = examine(environment)
    same = not environment.names_columns or columns == info.columns
    if not same or (spaces.observation_dim, spaces.action_dim) != (info.observation_dim, info.action_dim):
        raise UserError(
            f"{environment.label} has observations of dimension {spaces.observation_dim} and actions of "
            f"dimension {spaces.action_dim}, the data set {info.observation_dim} ({', '.join(info.columns[:4])}"
            f"{', ...' if len(info.columns) > 4 else ''}) and {info.action_dim}"
        )
    if info.action_bounds is not None:
        _check_bounds(environment.label, spaces.action_bounds, info.action_bounds)
    return dataclasses.replace(spaces, interface=_interface(info, spaces.interface.step_s))


def _interface(info: StoreInfo, step_s: float | None) -> Interface:
    """Names and units of a data set, and the time of a step of its environment."""
    action_units = tuple(info.units.get(name, "") for name in info.action_columns)
    return Interface(
        info.columns,
        info.column_units if any(info.column_units) else (),
        info.action_columns,
        action_units if any(action_units) else (),
        step_s,
    )


def _check_bounds(label: str, own: ActionBounds, stored: ActionBounds) -> None:
    """Raise unless actions in [-1, 1] mean the same in the data set and in the environment."""
    bounds = zip(own.low, own.high, stored.low, stored.high, strict=True)
    for entry, (low, high, stored_low, stored_high) in enumerate(bounds):
        # One of the two may have been rounded to float32, or to text.
        if max(abs(low - stored_low), abs(high - stored_high)) > 1e-5 * max(abs(low), abs(high)):
            raise UserError(
                f"{label} bounds entry {entry} of the action by [{low:g}, {high:g}], the data set by "
                f"[{stored_low:g}, {stored_high:g}]"
            )
