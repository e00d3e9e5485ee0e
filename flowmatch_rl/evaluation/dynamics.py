"""How far a one-step model departs from the environment when a policy is followed in it."""

import torch

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.models import Dynamics
from flowmatch_rl.types import Policy

HORIZONS = (1, 4, 16, 64)
"""Steps after which the departure is measured."""


@torch.no_grad()
def rollout_errors(dynamics: Dynamics, policy: Policy, rollouts: Rollouts, seed: int = 0) -> dict[int, torch.Tensor]:
    """Root-mean-square distance between modelled and real states, in standard deviations of the state.

    Both start from the same state and action. Where the environment or the policy is random it does not fall below
    the spread of the states.

    Args:
        dynamics: The model.
        policy: The policy that the trajectories follow.
        rollouts: Source states with real trajectories, of which the first of each is taken.
        seed: Seed of the actions.

    Returns:
        Distances by the number of steps, of those that some trajectory reaches without having terminated before.
    """
    if rollouts.states is None or rollouts.length is None or rollouts.ended is None:
        return {}
    generator = torch.Generator(rollouts.observation.device).manual_seed(seed)
    state, action, errors = rollouts.observation, rollouts.action, {}
    real, length, ended = rollouts.states[:, 0], rollouts.length[:, 0], rollouts.ended[:, 0]
    for time in range(1, min(max(HORIZONS), real.shape[1]) + 1):
        state = dynamics.step(state, action).arrival
        known = (length >= time) & ~(ended[:, time - 2] if time > 1 else torch.zeros_like(ended[:, 0]))
        if time in HORIZONS and bool(known.any()):
            gap = (state - real[:, time - 1])[known] / dynamics.state_scale
            errors[time] = gap.square().mean().sqrt()
        action = policy.act(state, rollouts.embedding, generator)
    return errors
