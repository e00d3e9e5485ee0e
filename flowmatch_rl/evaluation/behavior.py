"""How near a policy stays to the actions of a data set."""

import torch
from torch import Tensor

from flowmatch_rl.metrics import energy_score
from flowmatch_rl.models import ParticleActor


@torch.no_grad()
def score_actions(
    actor: ParticleActor, observation: Tensor, action: Tensor, num_actions: int = 4, seed: int = 0
) -> Tensor:
    """Mean energy score of an actor at actions of a data set.

    It is smallest for an actor that acts as the data do. Two actors that draw as many numbers for an action have common
    noise, so that their difference is less noisy than each.

    Args:
        actor: The actor.
        observation: States of the data, shape (B, S).
        action: Actions in [-1, 1] that the data have there, shape (B, A).
        num_actions: Independent actions of the actor in each state, at least 2.
        seed: Seed of their noise.

    Returns:
        Score in units of the action, shape ().
    """
    generator = torch.Generator().manual_seed(seed)
    return energy_score(actor(observation[:, None].expand(-1, num_actions, -1), generator), action).mean()


def behavior_distance(score: Tensor, behavior_score: Tensor) -> Tensor:
    """Mean squared energy distance of an actor from the behaviour: twice the excess of its energy score.

    Args:
        score: Score of the actor, see ``score_actions``.
        behavior_score: That of an actor that acts as the data do, at the same actions.

    Returns:
        Distance in units of the action, of the shape of the scores. Noise makes it negative.
    """
    return 2.0 * (score - behavior_score)
