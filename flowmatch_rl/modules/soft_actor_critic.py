"""Soft actor-critic: the plain baseline, with a squashed Gaussian policy."""

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.devices import check_compiler
from flowmatch_rl.models import FirstSelection, GaussianPolicy, GaussianPolicyArchitecture, ParticleActor
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics, Normalisation
from flowmatch_rl.objectives import EntropyTemperature, PolicyState, Temperature, soft_policy_loss
from flowmatch_rl.schema import ActionBounds


class SoftActorCritic(ActorCritic):
    """Maximum-entropy actor-critic with a squashed Gaussian policy.

    Shares critics, data, evaluation and optimizer with ``ReverseFlowActorCritic``, so that a comparison is one of
    policies. It acts by a sample of the policy while collecting and by the squashed mean in evaluation.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        discount: Discount per environment step, in [0, 1).
        temperature: Temperature in units of the return, or of the rewards' scale by ``normalisation``, or a rule for
            it.
        policy: Network and squash of the policy.
        critics: The critics and how their targets are made.
        entropy_backup: Whether the next state's value includes the entropy of the policy.
        optimizer: Learning rates, clipping and resets.
        normalisation: Units of observations and rewards.
        compile: Whether to compile updates, as one graph each, and acting with ``torch.compile``. The first update then
            takes up to a minute; on the CPU it needs a C++ compiler.

    Raises:
        UserError: If a number is out of its range, or the temperature is tuned to what is unknown of this policy.

    Reference:
        Haarnoja et al., arXiv:1812.05905.
    """

    policy: GaussianPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        temperature: Temperature | float = EntropyTemperature(),
        policy: GaussianPolicyArchitecture = GaussianPolicyArchitecture(),
        critics: Critics = Critics(),
        entropy_backup: bool = True,
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(),
        normalisation: Normalisation = Normalisation(),
        compile: bool = False,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lambda: policy.build(observation_dim, action_dim),
            critics,
            temperature,
            discount,
            optimizer,
            entropy_backup=entropy_backup,
            normalisation=normalisation,
        )
        if self.temperature_rule.needs_divergence:
            raise UserError(
                f"{self.temperature_rule} needs a behaviour that the data are of; use TiltedFlowActorCritic"
            )
        if self.temperature_rule.needs_samples:
            raise UserError(f"{self.temperature_rule} needs a policy that learns from importance samples, got {policy}")
        self.save_hyperparameters()
        if compile:
            check_compiler()
            self.policy.compile_sampling()
            self.critics.compile_evaluation()
            self._evaluate = torch.compile(self._evaluate)

    @property
    def behavior(self) -> None:
        """None: the policy departs from no behaviour."""

    def actor(self, role: Role) -> ParticleActor:
        """A sample of the policy, or in evaluation its mode in the latent space."""
        noise_scale = 0.0 if role == "eval" else 1.0
        return ParticleActor(self.policy, self.critics.values, 1, FirstSelection(), self.temperature, noise_scale)

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Critic loss and policy loss."""
        losses, value, entropy = self._evaluate(transition)
        self.means.add({"train/policy_value": value, "train/entropy": entropy})
        return losses, PolicyState(entropy, None, self.action_dim)

    def value_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The Bellman loss of the critics."""
        with torch.no_grad():
            next_latent, next_log_prob = self._sample(transition.next_observation)
            bonus = -self.temperature * next_log_prob if self.entropy_backup else None
        return {"critic": self.critic_loss(transition, self.policy.squash.action(next_latent), bonus)}

    def next_bonus(self, observation: Tensor) -> Tensor | None:
        """The temperature times the negative log-density of a sample; None without entropy in the values."""
        return -self.temperature * self._sample(observation)[1] if self.entropy_backup else None

    def _sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(observation), self.action_dim, device=observation.device)
        return self.policy.sample_with_log_prob(observation, noise)

    def _evaluate(self, transition: Transition) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The losses, mean value of the policy's actions, and entropy in nats; an update may compile all of it."""
        losses = self.value_losses(transition)
        latent, log_prob = self._sample(transition.observation)
        action = self.policy.squash.action(latent)
        values, gradients = self.critics.online.action_values_and_gradients(
            transition.observation, action.detach()[:, None], self.critics.critics.reduction
        )
        policy_loss = soft_policy_loss(log_prob, action, gradients[:, 0], self.temperature).mean()
        losses["policy"] = self.critics.online.in_own_unit(policy_loss)
        return losses, values.mean(), -log_prob.detach().mean()
