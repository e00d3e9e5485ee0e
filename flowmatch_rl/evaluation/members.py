"""Members of the family of policies, or latents, of source states."""

from dataclasses import replace

import torch

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.models import Occupancy


@torch.no_grad()
def with_members(model: Occupancy, rollouts: Rollouts) -> Rollouts:
    """Source states with what the model is to know of the policy that acts.

    Args:
        model: The model.
        rollouts: N source states, perhaps with trajectories.

    Returns:
        The same, for a model without intentions. Otherwise each source state has a latent, inferred from the state and
        the action after the first step of its trajectory; drawn from the prior where there is no trajectory, or none
        that goes on. The noise is the same at each call and leaves the global one alone.
    """
    if model.encoder is None:
        return rollouts
    generator = torch.Generator().manual_seed(3)
    latent = model.draw_members(len(rollouts.observation), generator)
    if rollouts.states is None or rollouts.actions is None or rollouts.length is None or rollouts.ended is None:
        return replace(rollouts, embedding=latent)
    goes_on = (rollouts.length[:, 0] > 1) & ~rollouts.ended[:, 0, 0]
    inferred = model.infer_members(rollouts.states[:, 0, 0], rollouts.actions[:, 0, 0], generator)
    return replace(rollouts, embedding=torch.where(goes_on[:, None], inferred, latent))
