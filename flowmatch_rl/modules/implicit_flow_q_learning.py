"""Implicit flow Q-learning: the best of several actions of a behaviour flow, by critics that never leave the data."""

from dataclasses import replace

import torch
from torch import Tensor

from flowmatch_rl.batches import Transition
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.models import Acting, FlowPolicy, FlowPolicyArchitecture, GreedySelection, ParticleActor
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics, Normalisation
from flowmatch_rl.nets import CriticEnsemble
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective, PolicyState, expectile_loss
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.schema import ActionBounds


class ImplicitFlowQLearning(ActorCritic):
    """Actor-critic for data sets: critics by the expectiles of implicit Q-learning, and a behaviour flow.

    A network V of the state learns an upper expectile of the critics' values of the data's actions, and the critics
    learn from V. No action is evaluated that is not in the data. It acts by the action of highest value among several
    of the flow.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        discount: Discount per environment step, in [0, 1).
        expectile: Expectile of the values, in (0, 1).
        policy: Path, network, sampler and squash of the behaviour flow.
        objective: What its network predicts.
        acting: How many of its actions one is chosen from, and how; ``SoftmaxSelection`` chooses at the temperature 1,
            in units of the return, or of the rewards' scale by ``normalisation``. No action is drawn for training:
            ``train_particles`` and ``train_selection`` must be their defaults.
        critics: The critics; their target networks give V its targets, and their shape is that of V.
        optimizer: Learning rates, clipping and resets.
        normalisation: Units of observations and rewards.

    Raises:
        UserError: If a number is out of its range, or a part of ``acting`` or ``critics`` would have no effect.

    Reference:
        Kostrikov et al., arXiv:2110.06169; Hansen-Estruch et al., arXiv:2304.10573; Park et al., arXiv:2502.02538,
        for flows (IFQL).
    """

    policy: FlowPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        expectile: float = 0.9,
        policy: FlowPolicyArchitecture = FlowPolicyArchitecture(squash=ClipSquash()),
        objective: FlowObjective = ConditionalFlowMatching(),
        acting: Acting = Acting(collect_particles=32, collect_selection=GreedySelection()),
        critics: Critics = Critics(reduction="mean"),
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(critic_learning_rate=3e-4),
        normalisation: Normalisation = Normalisation(),
    ) -> None:
        check_range("(0, 1)", expectile=expectile)
        if critics.subset_size is not None:
            raise UserError(f"critics.subset_size must be null: no target is reduced, got {critics.subset_size}")
        if critics.joint_batch:
            raise UserError("critics.joint_batch must be false: no next pair is evaluated, and V needs target networks")
        for name in ("train_particles", "train_selection"):
            if (got := getattr(acting, name)) != (default := getattr(Acting, name)):
                raise UserError(f"acting.{name} must be {default}: no action is drawn for training, got {got}")
        state_values = replace(critics.architecture, num_members=1)
        super().__init__(
            observation_dim,
            action_dim,
            lambda: policy.build(observation_dim, action_dim, objective),
            critics,
            1.0,
            discount,
            optimizer,
            {"value": lambda: state_values.build(observation_dim, 0)},
            normalisation=normalisation,
        )
        self.save_hyperparameters()
        self.objective, self.acting, self.expectile = objective, acting, expectile

    @property
    def behavior(self) -> FlowPolicy:
        """The flow, one of whose plain samples is an action of the behaviour."""
        return self.policy

    def actor(self, role: Role) -> ParticleActor:
        """The flow with the number of particles and the choice of a role."""
        return self.acting.actor(role, self.policy, self.critics.values, self.temperature)

    def state_values(self, observation: Tensor) -> Tensor:
        """Values V of states, with gradient.

        Args:
            observation: Shape (B, S).

        Returns:
            Values in units of the return, shape (B,).
        """
        network: CriticEnsemble = self.others["value"]  # pyright: ignore[reportAssignmentType]
        return network(observation, observation[:, :0])[0]

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Losses of V, the critics and the flow."""
        cloning_loss = self.policy.cloning_loss(self.objective, transition.observation, transition.action).mean()
        losses = self.value_losses(transition) | {"policy": cloning_loss}
        return losses, PolicyState(None, None, self.action_dim)

    def value_losses(self, transition: Transition) -> dict[str, Tensor]:
        """Loss of the critics against V, and the expectile loss of V."""
        with torch.no_grad():
            next_value = self.state_values(transition.next_observation)
            target = self.critics.target.action_values(
                transition.observation, transition.action[:, None], self.critics.critics.reduction
            )[:, 0]
        value, target = (
            self.critics.online.in_own_unit(v) for v in (self.state_values(transition.observation), target)
        )
        return {
            "critic": self.critics.loss_of_value(transition, next_value).mean(),
            "value": expectile_loss(value, target, self.expectile).mean(),
        }
