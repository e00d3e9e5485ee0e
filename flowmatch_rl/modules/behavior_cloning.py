"""Flow behaviour cloning: a flow or diffusion policy that acts as a data set does."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from flowmatch_rl.batches import Transition, read_transition
from flowmatch_rl.models import (
    FirstSelection,
    FlowPolicy,
    FlowPolicyArchitecture,
    GoalTable,
    LatentPolicy,
    ParticleActor,
    no_values,
)
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.ema_training import EmaTraining
from flowmatch_rl.modules.policy_module import PolicyModule
from flowmatch_rl.modules.settings import FlowOptimizer
from flowmatch_rl.nets import EmaSettings, ema_copy
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.schema import ActionBounds, TableSchema


class BehaviorCloning(EmaTraining, PolicyModule):
    """Conditional flow matching on the actions of a data set, given the observation.

    It acts by plain samples of the EMA policy. No rewards are needed. On data with goals it clones a family of
    policies, one for each goal: the flow is conditioned on the observation and the standardised goal side by side, so
    that a member acts as the data did where they went on to its goal.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        policy: Path, network, sampler and squash of the policy.
        objective: What the network predicts, with distribution and weight of the flow times; ``MeanFlow`` for a policy
            that acts in one step, by ``AverageVelocitySampler``.
        optimizer: Optimizer of the policy.
        ema: How the policy that acts follows the one that is trained.
        goal_schema: Names and units of the goals of a family; None for a single policy; taken from the data.

    Raises:
        UserError: If a number is out of its range, or parts do not fit each other.

    Reference:
        Chi et al., arXiv:2303.04137 (diffusion policy); Lipman et al., arXiv:2210.02747; Ghosh et al.,
        arXiv:1912.06088 (cloning with goals that the data arrive at).
    """

    progress_metrics: ClassVar = (("return", "val/return_mean"), ("loss", "train/loss"), ("held out", "val/loss"))

    learns_from_rewards: ClassVar = False

    loss_names: ClassVar = {"policy": "train/loss/policy"}

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        policy: FlowPolicyArchitecture = FlowPolicyArchitecture(squash=ClipSquash()),
        objective: FlowObjective = ConditionalFlowMatching(),
        optimizer: FlowOptimizer = FlowOptimizer(3e-4),
        ema: EmaSettings = EmaSettings(0.995, warm_up=True),
        goal_schema: TableSchema | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.observation_dim, self.action_dim = observation_dim, action_dim
        self.objective, self.optimizer, self.ema = objective, optimizer, ema
        self.goal_table = None if goal_schema is None else GoalTable(goal_schema)
        given_dim = observation_dim + (0 if goal_schema is None else goal_schema.sample_dim)
        self.trained_policy: FlowPolicy = policy.build(given_dim, action_dim, objective)
        self.policy = ema_copy(self.trained_policy)

    @property
    def ema_pair(self) -> tuple[LatentPolicy, LatentPolicy]:
        """The EMA policy, and the policy that is trained."""
        return self.policy, self.trained_policy

    @property
    def networks(self) -> Mapping[str, Iterable[Tensor]]:
        """The policy that is trained, and the EMA policy."""
        return {"policy": self.trained_policy.parameters(), "EMA policy": self.policy.parameters()}

    @property
    def behavior(self) -> None:
        """None: the policy is meant to be the behaviour itself."""

    @property
    def goals(self) -> GoalTable | None:
        """Goals of a family of policies; None for a single policy."""
        return self.goal_table

    def actor(self, role: Role) -> ParticleActor:
        """A plain sample of the EMA policy, whatever the role."""
        return ParticleActor(self.policy, no_values, 1, FirstSelection(), 1.0)

    def start_training(self) -> None:
        """As for any training, and take the goals that members are drawn from."""
        super().start_training()
        if self.goal_table is not None:
            data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            self.goal_table.fill(data.goal_table(len(self.goal_table.table)))

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        loss = self.loss(self.as_seen(read_transition(batch))).mean()
        self.means.add({"train/loss": loss, "train/loss/policy": loss})
        return loss

    def loss(self, transition: Transition) -> Tensor:
        """Loss of the trained policy per transition, shape (B,); draws flow times and noise.

        Args:
            transition: The batch, of which observations, with goals beside them for a family, and actions are used.
        """
        return self.trained_policy.cloning_loss(self.objective, transition.observation, transition.action)

    def held_out_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The loss of the EMA policy."""
        policy = cast(FlowPolicy, self.policy)
        return {"loss": policy.cloning_loss(self.objective, transition.observation, transition.action).mean()}

    def calibration(self, episodes: TensorDictBase) -> None:
        """None: there are no values."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on the policy."""
        return self.optimizer.build(self.trained_policy.parameters())
