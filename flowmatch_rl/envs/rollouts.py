"""Whole episodes of a policy."""

from collections.abc import Callable

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase


@torch.no_grad()
def roll_out_episodes(
    env: EnvBase,
    policy: Callable[[TensorDictBase], TensorDictBase],
    seed: int,
    max_steps: int,
    restart: bool = False,
) -> TensorDictBase:
    """Run one episode in every copy of an environment.

    Args:
        env: Environment of batch size (N,), or () for a single one.
        policy: Reads ``observation``, writes ``action``.
        seed: Seed of the environments' initial states; the same seed gives the same ones.
        max_steps: Steps after which an episode is cut off.
        restart: Whether to take ``max_steps`` steps in any case, other episodes following those that end.

    Returns:
        TensorDict of batch size (N, T) with the transitions and ``mask``, shape (N, T), true for the steps that
        belong to the episode (others are padding).

    Raises:
        RunError: If the environment is of ``build_environment`` and a number is not finite.
    """
    env.set_seed(seed)
    steps = env.rollout(max_steps, policy, break_when_any_done=False, break_when_all_done=not restart)
    steps = steps if steps.dim() == 2 else steps.unsqueeze(0)
    done = steps["next", "done"].squeeze(-1)
    mask = done.cumsum(1) - done.long() == 0
    return steps.set("mask", mask)
