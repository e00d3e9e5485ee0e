"""Soft actor-critic: the plain baseline, with a squashed Gaussian policy."""

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.models import FirstSelection, GaussianArchitecture, GaussianPolicy, ParticleActor
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.nets import CriticArchitecture, ValueReduction
from flowmatch_rl.objectives import EntropyTemperature, PolicyState, Temperature, soft_policy_loss
from flowmatch_rl.paths import Squash, TanhSquash


class SoftActorCritic(ActorCritic):
    """Maximum-entropy actor-critic with a squashed Gaussian policy.

    Shares critics, data, evaluation and optimizer with ``ReverseFlowActorCritic``, so that a comparison is one of
    policies. It acts by a sample of the policy while collecting and by the squashed mean in evaluation.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_low: Lower bounds of the action in the environment's unit, kept for ``load_policy``; from the data.
        action_high: Upper bounds; from the data.
        discount: Discount per environment step, in [0, 1).
        temperature: Temperature in units of the return, or a rule for it.
        squash: Map from latent points to actions.
        policy: Shape of the policy's network.
        critic: Shape of the critics.
        value_reduction: How the critics are reduced to one value.
        subset_size: Critics, drawn anew for every update, that a target is reduced over; all if None.
        entropy_backup: Whether the next state's value includes the entropy of the policy.
        actor_learning_rate: Adam's learning rate of the policy.
        critic_learning_rate: Adam's learning rate of the critics.
        temperature_learning_rate: Adam's learning rate of the logarithm of a temperature that is tuned.
        max_gradient_norm: Gradients of each network are clipped to this norm; positive.
        ema_decay: Rate of the lagging critics, in [0, 1).
        reset_interval: Gradient steps after which all networks start afresh; never if None.
        compile: Whether to compile the networks with ``torch.compile``.

    Raises:
        ValueError: If a number is out of its range, or the temperature is tuned to what this policy does not know.

    Reference:
        Haarnoja et al., arXiv:1812.05905.
    """

    policy: GaussianPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: list[float] | None = None,
        action_high: list[float] | None = None,
        discount: float = 0.99,
        temperature: Temperature | float = EntropyTemperature(),
        squash: Squash = TanhSquash(),
        policy: GaussianArchitecture = GaussianArchitecture(),
        critic: CriticArchitecture = CriticArchitecture(),
        value_reduction: ValueReduction = "min",
        subset_size: int | None = None,
        entropy_backup: bool = True,
        actor_learning_rate: float = 3e-4,
        critic_learning_rate: float = 1e-3,
        temperature_learning_rate: float = 1e-3,
        max_gradient_norm: float = 10.0,
        ema_decay: float = 0.995,
        reset_interval: int | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lambda: GaussianPolicy(policy, observation_dim, action_dim, squash),
            critic,
            temperature,
            discount,
            value_reduction,
            subset_size,
            {
                "actor": actor_learning_rate,
                "critic": critic_learning_rate,
                "temperature": temperature_learning_rate,
            },
            max_gradient_norm,
            ema_decay,
            reset_interval,
        )
        if self.temperature_rule.needs_samples:
            raise ValueError(
                f"{self.temperature_rule} needs a policy that learns from importance samples, got {policy}"
            )
        self.save_hyperparameters()
        self.squash, self.entropy_backup = squash, entropy_backup
        if compile:
            self.policy.compile_sampling()
            self.critic.compile_evaluation()
            self.critic_ema.compile_evaluation()

    def actor(self, role: str) -> ParticleActor:
        """A sample of the policy, or in evaluation its mode in the latent space."""
        noise_scale = {"collect": 1.0, "eval": 0.0}[role]
        return self.make_actor(1, FirstSelection(), noise_scale=noise_scale)

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Critic loss and policy loss."""
        with torch.no_grad():
            next_latent, next_log_prob = self._sample(transition.next_observation)
            bonus = -self.temperature * next_log_prob if self.entropy_backup else None
        critic_loss = self.critic_loss(transition, self.squash.action(next_latent), bonus)
        latent, log_prob = self._sample(transition.observation)
        action = self.squash.action(latent)
        values, gradients = self.critic.action_values_and_gradients(
            transition.observation, action.detach()[:, None], self.value_reduction
        )
        policy_loss = soft_policy_loss(log_prob, action, gradients[:, 0], self.temperature).mean()
        entropy = -log_prob.detach().mean()
        self.means.add({"train/policy_value": values.mean(), "train/entropy": entropy})
        return {"critic": critic_loss, "policy": policy_loss}, PolicyState(entropy, None, self.action_dim)

    def _sample(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(observation), self.action_dim, device=observation.device)
        return self.policy.sample_with_log_prob(observation, noise)
