"""Actor-critic for data sets: reverse flow matching with the behaviour of the data as prior."""

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError
from flowmatch_rl.estimators import EndpointEstimator, Prior, ReweightedEndpoints, boltzmann_density
from flowmatch_rl.models import Acting, FlowPolicy, FlowPolicyArchitecture, ParticleActor
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.behavior_actor_critic import BehaviorActorCritic
from flowmatch_rl.modules.policy_learner import PolicyLearner
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics, Normalisation, TrainingPoints, WeightCritics
from flowmatch_rl.objectives import (
    ConditionalFlowMatching,
    DivergenceTemperature,
    FlowObjective,
    PolicyState,
    Temperature,
    tilt_divergence,
)
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.schema import ActionBounds

_MEASURED_STATES, _MEASURED_ACTIONS = 4, 16


class TiltedFlowActorCritic(BehaviorActorCritic):
    """Actor-critic whose policy is a flow trained toward ``behaviour exp(Q / temperature)``.

    The policy learns, at points of the paths to actions of the data, from endpoints that an estimator gives relative to
    the behaviour. ``ReweightedEndpoints`` weights the actions of the data: energy-weighted flow matching.
    ``PriorMeanEstimator`` is reverse flow matching with a behaviour flow as prior. That flow is trained beside in any
    case: it measures how far the target diverges from the behaviour.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        discount: Discount per environment step, in [0, 1).
        temperature: Temperature of the policy in units of the return, or of the rewards' scale by ``normalisation``,
            positive, or a rule for it.
        policy: Path, network, sampler and squash of the policy.
        behavior: Those of the behaviour flow, whose path must be the policy's.
        objective: What the networks of both predict.
        estimator: Estimator of the endpoints that the policy learns from, relative to the behaviour.
        points: How many states of a batch the policy is trained at; the paths end at actions of the data.
        acting: How many particles an action is chosen from, and how; plain samples of the policy by default, which is
            tilted already, and does not look for errors of the critics as the best of many samples does.
        critics: The critics and how their targets are made.
        weights: Critics in the importance weights.
        optimizer: Learning rates, clipping and resets.
        normalisation: Units of observations and rewards.

    Raises:
        UserError: If a number is out of its range, or parts do not fit each other.

    Reference:
        Li et al., arXiv:2601.08136 (reverse flow matching, with a uniform prior); Zhang et al., arXiv:2503.04975
        (energy-weighted flow matching).
    """

    policy: FlowPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        temperature: Temperature | float = DivergenceTemperature(),
        policy: FlowPolicyArchitecture = FlowPolicyArchitecture(squash=ClipSquash()),
        behavior: FlowPolicyArchitecture = FlowPolicyArchitecture(squash=ClipSquash()),
        objective: FlowObjective = ConditionalFlowMatching(),
        estimator: EndpointEstimator = ReweightedEndpoints(),
        points: TrainingPoints = TrainingPoints(x_1_source="replay"),
        acting: Acting = Acting(train_particles=1, collect_particles=1, eval_particles=1),
        critics: Critics = Critics(reduction="mean"),
        weights: WeightCritics = WeightCritics(reduction="mean"),
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(critic_learning_rate=3e-4),
        normalisation: Normalisation = Normalisation(),
    ) -> None:
        super().__init__(
            observation_dim,
            action_dim,
            lambda: policy.build(observation_dim, action_dim, objective),
            critics,
            temperature,
            discount,
            optimizer,
            {"behavior": lambda: behavior.build(observation_dim, action_dim, objective)},
            normalisation=normalisation,
        )
        if estimator.needs_jacobian:
            raise UserError(f"expected an estimator relative to the behaviour, got {estimator}")
        if points.x_1_source != "replay":
            raise UserError(f"expected points.x_1_source replay, the actions of the data, got {points}")
        for part in ("path", "source", "squash", "t_min"):
            if getattr(behavior, part) != getattr(policy, part):
                wanted, got = getattr(policy, part), getattr(behavior, part)
                raise UserError(f"behavior.{part} must be that of policy, {wanted}, got {got}")
        rule = self.temperature_rule
        if rule.needs_entropy or (rule.needs_samples and estimator.num_samples < 2):
            raise UserError(f"{rule} cannot be measured with {estimator}; use DivergenceTemperature")
        self.save_hyperparameters()
        self.objective, self.points, self.acting, self.weights = objective, points, acting, weights
        self.learner = PolicyLearner(self.policy, objective, estimator)

    def actor(self, role: Role) -> ParticleActor:
        """The policy with the number of particles and the choice of a role."""
        return self.acting.actor(role, self.policy, self.critics.values, self.temperature)

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Losses of critics, behaviour flow and policy."""
        value_losses = self.value_losses(transition)
        cloning_loss = self.behavior.cloning_loss(self.objective, transition.observation, transition.action).mean()
        size = self.points.batch_size
        policy_loss, effective_samples = self.policy_loss(transition.observation[:size], transition.action[:size])
        divergence = None
        if self.temperature_rule.needs_divergence or self.logs_after(self.global_step + 1):
            divergence = self.divergence(transition.observation[:_MEASURED_STATES])
            self.means.add({"train/divergence": divergence})
        state = PolicyState(None, effective_samples, self.action_dim, divergence)
        return value_losses | {"behavior": cloning_loss, "policy": policy_loss}, state

    def policy_loss(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """Loss, and mean fraction of the samples that carry weight, None where there are none; both of shape ().

        Args:
            observation: States, shape (B, S).
            action: Actions of the data, shape (B, A).
        """
        estimator, squash = self.learner.estimator, self.policy.squash
        x_1 = squash.latent(action)

        # It does not depend on the samples of a point, so that it changes how much a state counts and nothing else.
        baseline = self._policy_values(observation) if estimator.compares_points else torch.zeros_like(x_1[:, :1])

        def value_and_gradient(actions: Tensor) -> tuple[Tensor, Tensor]:
            values, gradient = self.critics.weight_values(self.weights, observation, actions, estimator.needs_score)
            return values - baseline, gradient

        density = boltzmann_density(value_and_gradient, self.temperature, squash, jacobian=False)
        loss, learned = self.learner.loss(observation, x_1, density, self.prior(observation))
        self.means.add(learned.estimate.diagnostics("train/"))
        count = estimator.num_samples
        return loss.mean(), learned.estimate.effective_sample_size.mean() / count if count else None

    @torch.no_grad()
    def prior(self, observation: Tensor) -> Prior:
        """The behaviour flow at given states, without gradient.

        Args:
            observation: Shape (B, S).
        """
        flow = self.behavior.flow
        return Prior(flow.field().at(observation[:, None]), flow.interval)

    @torch.no_grad()
    def divergence(self, observation: Tensor) -> Tensor:
        """Divergence of the policy's target from the behaviour, nats, shape (); draws actions of the behaviour.

        Args:
            observation: Shape (B, S).
        """
        noise = torch.randn(len(observation), _MEASURED_ACTIONS, self.behavior.noise_dim, device=observation.device)
        actions = self.behavior.squash.action(self.behavior.sample_latents(observation, noise))
        values, _ = self.critics.weight_values(self.weights, observation, actions, with_gradient=False)
        return tilt_divergence(values / self.temperature).mean()

    def _policy_values(self, observation: Tensor) -> Tensor:
        """Value of an action of the policy at each state, shape (B, 1); draws it."""
        action = self.policy.squash.action(self.actor("train").latent(observation))
        return self.critics.weight_values(self.weights, observation, action[:, None], with_gradient=False)[0]
