"""Whether data and model of a run fit each other, before it begins."""

import functools
import math

import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.data import OfflineData, PolicyData
from flowmatch_rl.data.episodes import EpisodeData
from flowmatch_rl.data.transitions.segments import MOST_UNOBSERVED
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.envs.building import examine
from flowmatch_rl.envs.environments import Environment
from flowmatch_rl.modules import DynamicsModule, ForwardBackward, OccupancyActorCritic, OccupancyModule, PolicyModule
from flowmatch_rl.modules.occupancy_checks import check_policy
from flowmatch_rl.types import Policy


@functools.singledispatch
def check_fit(model: object, data: object) -> None:
    """Raise unless a model can be trained and evaluated on data; a model that is not known fits any.

    Args:
        model: The model.
        data: The data.

    Raises:
        UserError: If they do not go together.
    """


@check_fit.register
def _(model: OccupancyModule, data: object) -> None:
    if not isinstance(data, OfflineData) or data.environment is None or model.policy is None:
        return
    _check_environment(data.environment, data.store.info)
    discount = model.model.horizon.discount
    unseen = discount**data.eval_steps
    if unseen > MOST_UNOBSERVED:
        wanted = math.ceil(math.log(MOST_UNOBSERVED) / math.log(discount))
        raise UserError(
            f"eval_steps {data.eval_steps} leaves {unseen:.0%} of an occupancy at discount {discount} unseen; "
            f"it must be at least {wanted}"
        )


@check_fit.register
def _(model: PolicyModule, data: object) -> None:
    if isinstance(data, EpisodeData):
        data.check_module(model)
    if isinstance(data, PolicyData) and data.futures is not None:
        raise UserError(f"{type(model).__name__} learns nothing from data.futures; it must be null, got {data.futures}")


@check_fit.register
def _(model: OccupancyActorCritic, data: object) -> None:
    if isinstance(data, EpisodeData):
        data.check_module(model)
    wanted = data.futures_discount if isinstance(data, PolicyData) else None
    if wanted is not None and model.critics.discount != wanted:
        raise UserError(
            f"model.discount must be {wanted:g}, at which the future states of data.futures were drawn, got "
            f"{model.critics.discount:g}"
        )


@check_fit.register
def _(model: DynamicsModule, data: object) -> None:
    if isinstance(data, OfflineData) and data.environment is not None and model.policy is not None:
        _check_environment(data.environment, data.store.info)


def check_command(model: object, command: str | None) -> None:
    """Raise unless a model has all that a command needs.

    Args:
        model: The model.
        command: Name of the command.

    Raises:
        UserError: If it lacks a reward: samples do not need them, so that a checkpoint is loaded without them. Or if
            the one-step model that it is trained with cannot be loaded, or the command is of no use to it.
    """
    if isinstance(model, ForwardBackward) and command == "predict":
        raise UserError("a forward-backward representation acts for a reward; load it by load_forward_backward")
    if isinstance(model, OccupancyModule) and command in ("fit", "test"):
        model.check_rewards()
    if isinstance(model, OccupancyModule) and command == "fit":
        model.load_dynamics()


def check_acts(policy: Policy, environment: Environment) -> None:
    """Raise unless a policy can act in an environment.

    Args:
        policy: The policy.
        environment: The environment.

    Raises:
        UserError: If it takes other states, or its actions are of another dimension.
    """
    columns, action_dim = _spaces(environment)
    check_policy(policy, torch.zeros(1, len(columns)), columns, action_dim)


def _check_environment(environment: Environment, info: StoreInfo) -> None:
    """Raise unless a policy of the data can act in an environment."""
    columns, action_dim = _spaces(environment)
    same = columns == info.columns if environment.names_columns else len(columns) == len(info.columns)
    if not same or action_dim != info.action_dim:
        raise UserError(
            f"{environment.label} has {len(columns)} columns ({_some(columns)}) and actions of dimension {action_dim}, "
            f"the data set {len(info.columns)} columns ({_some(info.columns)}) and dimension {info.action_dim}"
        )


def _spaces(environment: Environment) -> tuple[tuple[str, ...], int]:
    """Names of the columns of an environment, and the dimension of its actions."""
    spaces, columns = examine(environment)
    return columns, spaces.action_dim


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
