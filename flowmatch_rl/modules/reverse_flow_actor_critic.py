"""Online actor-critic with a flow or diffusion policy, trained by reverse flow matching."""

from typing import Literal

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.estimators import EndPointEstimator, PosteriorMeanEstimator, boltzmann_density
from flowmatch_rl.models import (
    FlowPolicy,
    GreedySelection,
    LogDensityEstimate,
    ParticleActor,
    Selection,
    SoftmaxSelection,
)
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.policy_learner import Learned, PolicyLearner
from flowmatch_rl.modules.posterior_profile import PosteriorMeter, PosteriorProfile
from flowmatch_rl.nets import CriticArchitecture, ValueReduction, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective, PolicyState, Temperature
from flowmatch_rl.paths import AffinePath, GaussianSource, Source, Squash, TanhSquash
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.solvers import Euler

EndPointSource = Literal["policy", "replay", "uniform"]
"""Where the end points of the paths come from that a policy learns on."""


class ReverseFlowActorCritic(ActorCritic):
    """Actor-critic whose policy is a flow trained toward ``exp(Q / temperature)`` by reverse flow matching.

    The critics learn from the Bellman target of an action that is chosen among particles of the present policy. The
    policy learns, at points of the path to actions ``x_1``, from end points that an estimator gives from the critics'
    values: by default the posterior mean of the Boltzmann policy, from weighted samples. Path, prediction, estimator,
    sampler and choice among particles are parts; ``conf/actor_critic/methods`` composes published methods of them.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_low: Lower bounds of the action in the environment's unit, kept for ``load_policy``; from the data.
        action_high: Upper bounds; from the data.
        discount: Discount per environment step, in [0, 1).
        temperature: Temperature of the policy in units of the return, positive, or a rule for it.
        path: Path from noise to the latent action.
        source: Law of x_0.
        squash: Map from latent points to actions.
        sampler: How the policy carries noise to actions.
        t_min: Flow times lie in [t_min, 1 - t_min]; in (0, 0.5).
        objective: What the network predicts, with law and weight of the flow times; ``MeanFlow`` for a policy that
            acts in one step, by ``AverageVelocitySampler``.
        estimator: Estimator of the end points that the policy learns from.
        velocity: Shape of the policy's network, whatever it predicts.
        normalise: Whether the network sees x_t at unit variance and answers in units of what it predicts; for paths
            that explode.
        critic: Shape of the critics.
        train_particles: Particles per state for the Bellman target and for x_1.
        collect_particles: Particles per state while collecting.
        eval_particles: Particles per state in evaluation.
        train_selection: How one of the training particles is chosen.
        collect_selection: How one is chosen while collecting.
        eval_selection: How one is chosen in evaluation.
        exploration: Standard deviation of normal noise added to collected actions, in units of the action's range
            [-1, 1].
        x_1_source: Where the path at which the policy learns ends: a sample of the policy, the action in the replay
            buffer, or a uniform action.
        share_samples: Whether the policy learns at the next observation, so that one sampling pass serves the Bellman
            target and x_1; halves the sampling. The first state of an episode is then seen only where another ends in
            it. Needs ``x_1_source: policy``.
        policy_batch_size: States of each batch that the policy learns at; all if None.
        value_reduction: How the critics are reduced to one value, in targets and choices.
        subset_size: Critics, drawn anew for every update, that a target is reduced over; all if None.
        weight_critic: Critics in the importance weights: the learned ones or their lagging copies.
        weight_reduction: How the critics are reduced to one value in the importance weights.
        entropy_backup: Whether the next state's value includes the entropy of the policy's plain samples; exact for
            one training particle, or the first of several.
        log_density: How the log-density of plain samples is estimated, for ``entropy_backup`` and a temperature tuned
            to an entropy.
        actor_learning_rate: Adam's learning rate of the policy's network.
        critic_learning_rate: Adam's learning rate of the critics.
        temperature_learning_rate: Adam's learning rate of the logarithm of a temperature that is tuned.
        max_gradient_norm: Gradients of each network are clipped to this norm; positive.
        ema_decay: Rate of the lagging critics, in [0, 1).
        reset_interval: Gradient steps after which all networks start afresh; never if None.
        compile: Whether to compile sampling and posterior with ``torch.compile``.

    Raises:
        ValueError: If a number is out of its range, or parts do not fit each other.

    Reference:
        Li et al., arXiv:2601.08136.
    """

    policy: FlowPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_low: list[float] | None = None,
        action_high: list[float] | None = None,
        discount: float = 0.99,
        temperature: Temperature | float = 0.02,
        path: AffinePath = AffinePath(),
        source: Source = GaussianSource(),
        squash: Squash = TanhSquash(),
        sampler: Sampler = OdeSampler(Euler(num_steps=10)),
        t_min: float = 0.01,
        objective: FlowObjective = ConditionalFlowMatching(),
        estimator: EndPointEstimator = PosteriorMeanEstimator(),
        velocity: VelocityArchitecture = VelocityArchitecture(),
        normalise: bool = False,
        critic: CriticArchitecture = CriticArchitecture(),
        train_particles: int = 16,
        collect_particles: int = 16,
        eval_particles: int = 32,
        train_selection: Selection = SoftmaxSelection(),
        collect_selection: Selection = SoftmaxSelection(),
        eval_selection: Selection = GreedySelection(),
        exploration: float = 0.0,
        x_1_source: EndPointSource = "policy",
        share_samples: bool = False,
        policy_batch_size: int | None = None,
        value_reduction: ValueReduction = "min",
        subset_size: int | None = None,
        weight_critic: Literal["online", "target"] = "online",
        weight_reduction: ValueReduction = "min",
        entropy_backup: bool = False,
        log_density: LogDensityEstimate = LogDensityEstimate(),
        actor_learning_rate: float = 3e-4,
        critic_learning_rate: float = 1e-3,
        temperature_learning_rate: float = 1e-3,
        max_gradient_norm: float = 10.0,
        ema_decay: float = 0.995,
        reset_interval: int | None = None,
        compile: bool = False,
    ) -> None:
        def build_policy() -> FlowPolicy:
            averages = objective.uses_duration
            network = velocity.build(action_dim, observation_dim, takes_duration=averages)
            return FlowPolicy(network, path, sampler, squash, t_min, objective.predicts, source, normalise, averages)

        super().__init__(
            observation_dim,
            action_dim,
            build_policy,
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
        if share_samples and x_1_source != "policy":
            raise ValueError(f"share_samples needs x_1_source: policy, got {x_1_source}")
        if policy_batch_size is not None and policy_batch_size < 1:
            raise ValueError(f"policy_batch_size must be at least 1, got {policy_batch_size}")
        if self.temperature_rule.needs_samples and estimator.num_samples < 2:
            raise ValueError(f"{self.temperature_rule} needs an estimator with two samples or more, got {estimator}")
        self.save_hyperparameters()
        self.squash = squash
        self.learner = PolicyLearner(self.policy, objective, estimator)
        self.posterior_meter = PosteriorMeter(self.learner)
        self.posterior_profile: PosteriorProfile | None = None
        self.x_1_source, self.share_samples = x_1_source, share_samples
        self.policy_batch_size = policy_batch_size
        self._weight_by_ema = weight_critic == "target"
        self.weight_reduction: ValueReduction = weight_reduction
        self.entropy_backup, self.log_density = entropy_backup, log_density
        self._estimates_entropy = entropy_backup or self.temperature_rule.needs_entropy
        if self._estimates_entropy and not source.is_smooth:
            raise ValueError(f"an entropy needs a source with a smooth density everywhere, got {source}")
        self._roles = {
            "train": (train_particles, train_selection, 0.0),
            "collect": (collect_particles, collect_selection, exploration),
            "eval": (eval_particles, eval_selection, 0.0),
        }
        for role in self._roles:
            self.actor(role)
        if compile:
            self.policy.compile_sampling()
            self.critic.compile_evaluation()
            self.critic_ema.compile_evaluation()

    def actor(self, role: str) -> ParticleActor:
        """The policy with the number of particles and the choice of a role.

        Args:
            role: ``train``, ``collect`` or ``eval``.
        """
        num_particles, selection, exploration = self._roles[role]
        return self.make_actor(num_particles, selection, exploration=exploration)

    def on_validation_epoch_start(self) -> None:
        """Log what the policy's targets were like, before a checkpoint is written."""
        self._log_posterior_profile()

    def on_train_epoch_end(self) -> None:
        """Log what the policy's targets were like since the last evaluation."""
        self._log_posterior_profile()

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Critic loss and policy loss."""
        next_latent, observation, x_1 = self._sample(transition)
        bonus, entropy = None, None
        if self._estimates_entropy:
            log_prob = self._log_prob(transition.next_observation, next_latent)
            entropy = -log_prob.mean()
            self.means.add({"train/entropy": entropy})
            bonus = -self.temperature * log_prob if self.entropy_backup else None
        critic_loss = self.critic_loss(transition, self.squash.action(next_latent), bonus)
        policy_loss, effective_samples = self._policy_loss(observation, x_1)
        losses = {"critic": critic_loss, "policy": policy_loss}
        return losses, PolicyState(entropy, effective_samples, self.action_dim)

    def _sample(self, transition: Transition) -> tuple[Tensor, Tensor, Tensor]:
        """Next latent (B, A), and observation (P, S) and end point x_1 (P, A) of the paths the policy learns on."""
        actor, squash, size = self.actor("train"), self.squash, self.policy_batch_size
        if self.share_samples:
            latent = actor.latent(transition.next_observation)
            return latent, transition.next_observation[:size], latent[:size]
        observation, action = transition.observation[:size], transition.action[:size]
        if self.x_1_source == "policy":
            both = torch.cat([transition.next_observation, observation])
            next_latent, x_1 = actor.latent(both).split([len(transition.observation), len(observation)])
            return next_latent, observation, x_1
        uniform = 2.0 * torch.rand_like(action) - 1.0
        x_1 = squash.latent(action if self.x_1_source == "replay" else uniform)
        return actor.latent(transition.next_observation), observation, x_1

    @torch.no_grad()
    def _log_prob(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Log-density (B,) of the actions of latent points under the policy's plain samples, nats."""
        probes = self.log_density.divergence.needed_probes
        noise = torch.randn(probes, *latent.shape, device=latent.device) if probes else None
        return self.log_density.of_actions(self.policy, observation, latent, noise)

    def _policy_loss(self, observation: Tensor, x_1: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss, and mean share of the samples that carry weight, None where there are none; both of shape ()."""
        estimator, critic = self.learner.estimator, self.critic_ema if self._weight_by_ema else self.critic

        def value_and_gradient(actions: Tensor) -> tuple[Tensor, Tensor]:
            if estimator.needs_score:
                return critic.action_values_and_gradients(observation, actions, self.weight_reduction)
            values = critic.action_values(observation, actions, self.weight_reduction)
            return values, torch.zeros_like(actions)

        density = boltzmann_density(value_and_gradient, self.temperature, self.squash, estimator.needs_jacobian)
        loss, learned = self.learner.loss(observation, x_1, density)
        count = estimator.num_samples
        share = learned.ends.effective_sample_size.mean() / count if count else None
        self._note(learned)
        return loss.mean(), share

    def _note(self, learned: Learned) -> None:
        ends, saturated = learned.ends, self.squash.action(learned.points.x_1).abs() > 0.99
        self.means.add(
            {
                "train/effective_sample_size": ends.effective_sample_size.mean(),
                "train/eta": ends.eta.mean(),
                "train/log_density_spread": ends.log_density_spread.mean(),
                "train/saturated": saturated.float().mean(),
            }
        )
        self.posterior_meter.add(learned)

    def _log_posterior_profile(self) -> None:
        """Log the targets of the updates since the last time by flow time, if there were any, and keep them."""
        profile = self.posterior_meter.take(int(self._env_steps()), lambda sums: torch.as_tensor(self.all_gather(sums)))
        if profile is not None:
            self.posterior_profile = profile
            self.log_dict(profile.metrics("train/by_time") | {"step": self._env_steps()}, batch_size=1, sync_dist=True)
