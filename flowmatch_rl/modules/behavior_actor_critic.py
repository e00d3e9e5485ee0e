"""What actor-critics share that train a behaviour flow beside their policy."""

import abc

from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.models import FlowPolicy
from flowmatch_rl.modules.actor_critic import ActorCritic


class BehaviorActorCritic(ActorCritic, abc.ABC):
    """Actor-critic for data sets whose critics learn from its policy, which departs from a behaviour flow.

    Children build the flow among the other networks, by the name ``behavior``.
    """

    @property
    def behavior(self) -> FlowPolicy:
        """The behaviour flow."""
        flow: FlowPolicy = self.others["behavior"]  # pyright: ignore[reportAssignmentType]
        return flow

    def value_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The Bellman loss of the critics, for an action of the policy in the arrival state."""
        next_action = self.policy.squash.action(self.actor("train").latent(transition.next_observation))
        return {"critic": self.critic_loss(transition, next_action)}
