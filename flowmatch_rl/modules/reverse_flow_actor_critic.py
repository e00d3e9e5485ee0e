"""Online actor-critic with a flow or diffusion policy, trained by reverse flow matching."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.devices import check_compiler
from flowmatch_rl.estimators import EndpointEstimator, PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.models import Acting, FlowPolicy, FlowPolicyArchitecture, Likelihood, ParticleActor
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.policy_learner import Learned, PolicyLearner
from flowmatch_rl.modules.posterior_profile import PosteriorMeter, PosteriorProfile
from flowmatch_rl.modules.remarks import target_remarks
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics, Normalisation, TrainingPoints, WeightCritics
from flowmatch_rl.modules.watched import Carried
from flowmatch_rl.objectives import (
    ConditionalFlowMatching,
    FlowObjective,
    PolicyState,
    Temperature,
)
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.solvers import Euler


class ReverseFlowActorCritic(ActorCritic):
    """Actor-critic whose policy is a flow trained toward ``exp(Q / temperature)`` by reverse flow matching.

    The critics learn from the Bellman target of an action that is chosen among particles of the current policy. The
    policy learns, at points of the path to actions ``x_1``, from endpoints that an estimator gives from the critics'
    values: by default the posterior mean of the Boltzmann policy, from weighted samples. Path, prediction, estimator,
    sampler and choice among particles are parts; ``conf/actor_critic/methods`` composes published methods of them.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        discount: Discount per environment step, in [0, 1).
        temperature: Temperature of the policy in units of the return, or of the rewards' scale by ``normalisation``,
            positive, or a rule for it.
        policy: Path, network, sampler and squash of the policy.
        objective: What the network predicts, with distribution and weight of the flow times; ``MeanFlow`` for a policy
            that acts in one step, by ``AverageVelocitySampler``.
        estimator: Estimator of the endpoints that the policy learns from.
        points: Where along which paths the policy is trained.
        acting: How many particles an action is chosen from, and how.
        critics: The critics and how their targets are made.
        weights: Critics in the importance weights.
        entropy_backup: Whether the next state's value includes the entropy of the policy's plain samples; exact for
            one training particle, or the first of several.
        likelihood: How the log-density of plain samples is computed, for ``entropy_backup`` and a temperature tuned to
            an entropy.
        optimizer: Learning rates, clipping and resets.
        normalisation: Units of observations and rewards.
        compile: Whether to compile updates, as one graph each, and acting with ``torch.compile``. The first update then
            takes up to a minute; on the CPU it needs a C++ compiler.

    Raises:
        UserError: If a number is out of its range, or parts do not fit each other.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    policy: FlowPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        temperature: Temperature | float = 0.02,
        policy: FlowPolicyArchitecture = FlowPolicyArchitecture(),
        objective: FlowObjective = ConditionalFlowMatching(),
        estimator: EndpointEstimator = PosteriorMeanEstimator(),
        points: TrainingPoints = TrainingPoints(),
        acting: Acting = Acting(),
        critics: Critics = Critics(),
        weights: WeightCritics = WeightCritics(),
        entropy_backup: bool = False,
        likelihood: Likelihood = Likelihood(Euler(num_steps=10)),
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(),
        normalisation: Normalisation = Normalisation(),
        compile: bool = False,
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lambda: policy.build(observation_dim, action_dim, objective),
            critics,
            temperature,
            discount,
            optimizer,
            entropy_backup=entropy_backup,
            normalisation=normalisation,
        )
        rule = self.temperature_rule
        if rule.needs_samples and estimator.num_samples < 2:
            raise UserError(f"{rule} needs an estimator with two samples or more, got {estimator}")
        if estimator.needs_prior or rule.needs_divergence:
            part = estimator if estimator.needs_prior else rule
            raise UserError(f"{part} needs a behaviour that the data are of; use TiltedFlowActorCritic")
        self._estimates_entropy = entropy_backup or rule.needs_entropy
        if self._estimates_entropy and not policy.source.is_smooth:
            raise UserError(f"an entropy needs a source with a smooth density everywhere, got {policy.source}")
        self.save_hyperparameters()
        self.learner = PolicyLearner(self.policy, objective, estimator)
        self.posterior_meter = PosteriorMeter(self.learner)
        self.posterior_profile: PosteriorProfile | None = None
        self.points, self.acting, self.weights = points, acting, weights
        self.likelihood = likelihood
        if compile:
            check_compiler()
            self.policy.compile_sampling()
            self.critics.compile_evaluation()
            self._evaluate = torch.compile(self._evaluate, dynamic=False)

    @property
    def behavior(self) -> None:
        """None: the policy departs from no behaviour."""

    def actor(self, role: Role) -> ParticleActor:
        """The policy with the number of particles and the choice of a role."""
        return self.acting.actor(role, self.policy, self.critics.values, self.temperature)

    def on_validation_epoch_end(self) -> None:
        """Log a profile of the policy's targets, before a checkpoint is written; one broken off is repeated."""
        self._log_posterior_profile()

    @property
    def carried(self) -> Mapping[str, Carried]:
        """As of any module, and what the profile is made of."""
        return {**super().carried, "posterior": self.posterior_meter}

    def on_train_epoch_end(self) -> None:
        """Log a profile of the policy's targets since the last evaluation."""
        self._log_posterior_profile()

    def remarks(self) -> dict[str, str]:
        """What the targets since the last evaluation say about settings, one line each by what it is about."""
        profile = self.posterior_profile
        return {} if profile is None else target_remarks(profile, self.learner.estimator)

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Critic loss and policy loss."""
        losses, entropy, learned = self._evaluate(transition, self.actor("train"))
        estimate, count = learned.estimate, self.learner.estimator.num_samples
        saturated = self.policy.squash.action(learned.points.x_1).abs() > 0.99
        self.means.add(estimate.diagnostics("train/") | {"train/saturated": saturated.float().mean()})
        if entropy is not None:
            self.means.add({"train/entropy": entropy})
        self.posterior_meter.add(learned)
        effective_samples = estimate.effective_sample_size.mean() / count if count else None
        return losses, PolicyState(entropy, effective_samples, self.action_dim)

    def value_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The Bellman loss of the critics."""
        return {"critic": self._critic_loss(transition, self.actor("train").latent(transition.next_observation))[0]}

    def next_bonus(self, observation: Tensor) -> Tensor | None:
        """The temperature times the negative log-density of a sample; None without entropy in the values."""
        if not self.entropy_backup:
            return None
        return -self.temperature * self._log_prob(observation, self.actor("train").latent(observation))

    def endpoints(self, transition: Transition, actor: ParticleActor) -> tuple[Tensor, Tensor, Tensor]:
        """Next latent (B, A), and observation (P, S) and endpoint x_1 (P, A) of the paths the policy is trained on."""
        squash, size = self.policy.squash, self.points.batch_size
        if self.points.share_samples:
            latent = actor.latent(transition.next_observation)
            return latent, transition.next_observation[:size], latent[:size]
        observation, action = transition.observation[:size], transition.action[:size]
        if self.points.x_1_source == "policy":
            both = torch.cat([transition.next_observation, observation])
            next_latent, x_1 = actor.latent(both).split([len(transition.observation), len(observation)])
            return next_latent, observation, x_1
        uniform = 2.0 * torch.rand_like(action) - 1.0
        x_1 = squash.latent(action if self.points.x_1_source == "replay" else uniform)
        return actor.latent(transition.next_observation), observation, x_1

    def _evaluate(
        self, transition: Transition, actor: ParticleActor
    ) -> tuple[dict[str, Tensor], Tensor | None, Learned]:
        """The losses, entropy, and what the policy has learned from; an update may compile all of it.

        The actor is made outside: a frozen dataclass that is made in a graph cannot live on where the graph ends, as it
        does where an actor draws more particles than one piece holds.
        """
        next_latent, observation, x_1 = self.endpoints(transition, actor)
        critic_loss, entropy = self._critic_loss(transition, next_latent)
        policy_loss, learned = self.policy_loss(observation, x_1)
        return {"critic": critic_loss, "policy": policy_loss}, entropy, learned

    def _critic_loss(self, transition: Transition, next_latent: Tensor) -> tuple[Tensor, Tensor | None]:
        """Bellman loss of the critics, and the entropy of the policy in nats where it is estimated; each shape ()."""
        bonus, entropy = None, None
        if self._estimates_entropy:
            log_prob = self._log_prob(transition.next_observation, next_latent)
            entropy = -log_prob.mean()
            bonus = -self.temperature * log_prob if self.entropy_backup else None
        return self.critic_loss(transition, self.policy.squash.action(next_latent), bonus), entropy

    def _log_prob(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Log-density (B,) of the actions of latent points under the policy's plain samples, nats."""
        probes = self.likelihood.divergence.needed_probes
        noise = torch.randn(probes, *latent.shape, device=latent.device).movedim(0, 1) if probes else None
        return self.policy.log_prob(observation, latent, self.likelihood, noise)

    def policy_loss(self, observation: Tensor, x_1: Tensor) -> tuple[Tensor, Learned]:
        """Loss, shape (), and what it was made of.

        Args:
            observation: States, shape (P, S).
            x_1: Latent points where the paths end, shape (P, A).
        """
        needs_score, needs_jacobian = self.learner.estimator.needs_score, self.learner.estimator.needs_jacobian

        def value_and_gradient(actions: Tensor) -> tuple[Tensor, Tensor]:
            return self.critics.weight_values(self.weights, observation, actions, needs_score)

        density = boltzmann_density(value_and_gradient, self.temperature, self.policy.squash, needs_jacobian)
        loss, learned = self.learner.loss(observation, x_1, density)
        return loss.mean(), learned

    def _log_posterior_profile(self) -> None:
        """Log the targets of the updates since the last time by flow time, if there were any, and keep them."""
        profile = self.posterior_meter.take(int(self._env_steps()), lambda sums: torch.as_tensor(self.all_gather(sums)))
        if profile is not None:
            self.posterior_profile = profile
            self.log_dict(profile.metrics("train/by_time") | {"step": self._env_steps()}, batch_size=1, sync_dist=True)
