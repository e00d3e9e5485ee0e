"""Flow Q-learning: a one-step policy between a behaviour flow and the critics."""

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.models import (
    FirstSelection,
    FlowPolicyArchitecture,
    OneStepPolicy,
    OneStepPolicyArchitecture,
    ParticleActor,
)
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.behavior_actor_critic import BehaviorActorCritic
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics, Normalisation
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective, PolicyState, distilled_policy_loss
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.schema import ActionBounds


class FlowQLearning(BehaviorActorCritic):
    """Actor-critic for data sets: a one-step policy goes uphill in Q and stays near a behaviour flow.

    The behaviour flow clones the data. The policy maps noise to an action at once; its loss is ``-Q`` plus ``alpha``
    times the squared distance from what the behaviour flow makes of the same noise.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        discount: Discount per environment step, in [0, 1).
        alpha: Weight of the distance, in units of the return, or of the rewards' scale, see ``normalisation``; 10 to
            1000 by task in the paper.
        normalise_values: Whether values are divided by their mean magnitude over the batch, so that ``alpha`` has no
            unit.
        policy: Network and squash of the policy.
        behavior: Path, network, sampler and squash of the behaviour flow.
        objective: What its network predicts.
        critics: The critics and how their targets are made.
        optimizer: Learning rates, clipping and resets.
        normalisation: Units of observations and rewards.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Park et al., arXiv:2502.02538.
    """

    policy: OneStepPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        alpha: float = 10.0,
        normalise_values: bool = False,
        policy: OneStepPolicyArchitecture = OneStepPolicyArchitecture(),
        behavior: FlowPolicyArchitecture = FlowPolicyArchitecture(squash=ClipSquash()),
        objective: FlowObjective = ConditionalFlowMatching(),
        critics: Critics = Critics(reduction="mean"),
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(critic_learning_rate=3e-4),
        normalisation: Normalisation = Normalisation(),
    ) -> None:
        check_range("[0, inf)", alpha=alpha)
        if policy.squash != behavior.squash or behavior.sampler.adds_noise:
            raise UserError(
                f"expected a behavior with the squash of policy, {policy.squash}, and a sampler without noise, got "
                f"{behavior.squash} and {behavior.sampler}"
            )
        super().__init__(
            observation_dim,
            action_dim,
            lambda: policy.build(observation_dim, action_dim),
            critics,
            1.0,
            discount,
            optimizer,
            {"behavior": lambda: behavior.build(observation_dim, action_dim, objective)},
            normalisation=normalisation,
        )
        self.save_hyperparameters()
        self.objective, self.alpha, self.normalise_values = objective, alpha, normalise_values

    def actor(self, role: Role) -> ParticleActor:
        """A sample of the policy, whatever the role."""
        return ParticleActor(self.policy, self.critics.values, 1, FirstSelection(), self.temperature)

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Losses of critics, behaviour flow and policy."""
        losses = self.value_losses(transition) | {
            "behavior": self.behavior.cloning_loss(self.objective, transition.observation, transition.action).mean(),
            "policy": self.policy_loss(transition.observation).mean(),
        }
        return losses, PolicyState(None, None, self.action_dim)

    def policy_loss(self, observation: Tensor) -> Tensor:
        """Loss of the policy per state, shape (B,); draws noise.

        Args:
            observation: Shape (B, S).
        """
        noise = torch.randn(len(observation), self.policy.noise_dim, device=observation.device)
        latent = self.policy(observation, noise)
        action = self.policy.squash.action(latent)
        values, gradients = self.critics.online.action_values_and_gradients(
            observation, action.detach()[:, None], self.critics.critics.reduction
        )
        cloned = self.behavior.squash.action(self.behavior.sample_latents(observation, noise[:, None])[:, 0])
        nearby = self.policy.squash.latent(cloned)
        scale = values.abs().mean() if self.normalise_values else self.units.temperature_unit
        distance = (action.detach() - cloned).square().mean()
        self.means.add({"train/policy_value": values.mean(), "train/behavior_distance": distance})
        return distilled_policy_loss(latent, action, gradients[:, 0], nearby, self.alpha, scale)
