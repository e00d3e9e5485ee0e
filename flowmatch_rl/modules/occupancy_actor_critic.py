"""Actor-critic for any reward of the state: values from an occupancy, and a policy tilted from its family."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmatch_rl.batches import FamilyValues, Transition
from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.evaluation.expected_return import ModelledReturn, modelled_return, stated_return
from flowmatch_rl.models import (
    Acting,
    Dynamics,
    FlowPolicy,
    FlowPolicyArchitecture,
    GreedySelection,
    LatentPolicy,
    ParticleActor,
)
from flowmatch_rl.models.actor import Role
from flowmatch_rl.modules.actor_critic import ActorCritic
from flowmatch_rl.modules.dynamics import load_dynamics
from flowmatch_rl.modules.settings import ActorCriticOptimizer, Critics
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.objectives import (
    ConditionalFlowMatching,
    DivergenceTemperature,
    FlowObjective,
    PolicyState,
    Temperature,
    expectile_loss,
    tilt_divergence,
    tilted_actions,
)
from flowmatch_rl.paths import ClipSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import ActionBounds
from flowmatch_rl.shapes import even_rows
from flowmatch_rl.solvers import Euler

IMPROVED_POLICY = FlowPolicyArchitecture(
    squash=ClipSquash(), sampler=OdeSampler(Euler(num_steps=5)), network=VelocityArchitecture(hidden_dim=128)
)
IMPROVED_CRITICS = Critics(CriticArchitecture(layer_norm=True), "mean", ema_decay=0.95)
"""Small networks, for a policy in minutes."""

_FOLLOWED = 512
"""States that the policy is followed from in a one-step model."""


class OccupancyActorCritic(ActorCritic):
    """Actor-critic whose policy improves on a family of policies, for a reward that the family was not made for.

    An occupancy of the family gives the value of each member's action under any reward, as a mean over future states.
    The critics learn from these values first: an upper expectile over the members is what the best of them would reach
    (implicit generalised policy improvement). Then they learn from the transitions of the data and the policy's own
    actions, which no single member takes for long, so that they come to say what the policy returns (fitted Q
    evaluation). The policy is a flow toward ``family exp(Q / temperature)``, trained on actions of the members at
    states of the data that are drawn by these weights.

    Args:
        observation_dim: Dimension S of the observation; taken from the data.
        action_dim: Dimension A of the action; taken from the data.
        action_bounds: Bounds of the action in the environment's unit, kept for ``load_policy``; taken from the data.
        discount: Discount per environment step, in [0, 1); that of the occupancy.
        temperature: Temperature of the policy in units of the return, positive, or a rule for it. A divergence is
            measured with the members of a state.
        policy: Path, network, sampler and squash of the policy.
        objective: What its network predicts.
        expectile: Expectile of the values over the members that take an action, in (0, 1). Values are means of a few
            samples, whose noise an expectile above 0.5 takes for value.
        occupancy_updates: Gradient steps in which the critics learn from the occupancy, at least 1; afterwards they
            learn from transitions. As many as the run has keep the occupancy's values.
        num_states: States of a batch that the policy is trained at, at least 1.
        actions_per_state: Actions drawn at each of them, at least 1.
        acting: How many particles an action is chosen from, and how.
        critics: The critics and how their targets are made.
        optimizer: Learning rates, clipping and resets.
        dynamics: Checkpoint of a ``DynamicsModule`` of the same data, in whose model the policy is followed to measure
            the expected return; None for what the critics say.

    Raises:
        MissingFileError: If there is no such checkpoint, once it is needed.
        UserError: If a number is out of its range, or the temperature's rule cannot be measured.

    Reference:
        Farebrother et al., arXiv:2503.09817, for generalised policy improvement with an occupancy; Zheng et al.,
        arXiv:2506.08902, for its implicit form; Le et al., arXiv:1903.08738, for fitted Q evaluation; Zhang et al.,
        arXiv:2503.04975, for energy-weighted flow matching.
    """

    policy: FlowPolicy

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        action_bounds: ActionBounds | None = None,
        discount: float = 0.99,
        temperature: Temperature | float = DivergenceTemperature(nats=1.0),
        policy: FlowPolicyArchitecture = IMPROVED_POLICY,
        objective: FlowObjective = ConditionalFlowMatching(),
        expectile: float = 0.5,
        occupancy_updates: int = 1_000,
        num_states: int = 32,
        actions_per_state: int = 4,
        acting: Acting = Acting(2, 2, 2, GreedySelection(), GreedySelection(), GreedySelection()),
        critics: Critics = IMPROVED_CRITICS,
        optimizer: ActorCriticOptimizer = ActorCriticOptimizer(1e-3, 1e-3, temperature_learning_rate=1e-2),
        dynamics: str | None = None,
    ) -> None:
        check_range("(0, 1)", expectile=expectile)
        check_range(
            "[1, inf)",
            occupancy_updates=occupancy_updates,
            num_states=num_states,
            actions_per_state=actions_per_state,
        )
        super().__init__(
            observation_dim,
            action_dim,
            lambda: policy.build(observation_dim, action_dim, objective),
            critics,
            temperature,
            discount,
            optimizer,
        )
        if self.temperature_rule.needs_entropy or self.temperature_rule.needs_samples:
            raise UserError(f"expected a temperature that is constant or tuned to a divergence, got {temperature}")
        self.save_hyperparameters()
        self.objective, self.acting, self.expectile = objective, acting, expectile
        self._dynamics = dynamics
        self.occupancy_updates, self.num_states, self.actions_per_state = (
            occupancy_updates,
            num_states,
            actions_per_state,
        )

    @property
    def behavior(self) -> LatentPolicy | None:
        """None: the family of the occupancy is not a part of it."""
        return None

    def actor(self, role: Role) -> ParticleActor:
        """The policy with the number of particles and the choice of a role."""
        return self.acting.actor(role, self.policy, self.critics.values, self.temperature)

    def losses(self, transition: Transition) -> tuple[dict[str, Tensor], PolicyState]:
        """Losses of critics and policy."""
        family = transition.family
        if family is None:
            raise UserError("OccupancyActorCritic needs data.futures, future states of an occupancy, got null")
        if self.global_step < self.occupancy_updates:
            losses = {"critic": self.occupancy_loss(family)}
        else:
            losses = self.value_losses(transition)
        policy_loss, divergence = self.policy_loss(family)
        self.means.add({"train/divergence": divergence})
        return losses | {"policy": policy_loss}, PolicyState(None, None, self.action_dim, divergence)

    def value_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The Bellman loss of the critics, for an action of the policy in the arrival state."""
        next_action = self.policy.squash.action(self.actor("train").latent(transition.next_observation))
        return {"critic": self.critic_loss(transition, next_action)}

    def held_out_losses(self, transition: Transition) -> dict[str, Tensor]:
        """The Bellman loss, and the discounted return expected from the states, with its standard error."""
        values = self.critics.online(transition.observation, self.actor("eval")(transition.observation))
        mean, error = stated_return(values)
        expected = {"expected_return": mean, "expected_return_error": error}
        if self._dynamics is not None:
            modelled = self.modelled_return(transition.observation[even_rows(len(values[0]), _FOLLOWED)])
            expected |= {"modelled_return": modelled.mean, "modelled_return_error": modelled.error}
        return super().held_out_losses(transition) | expected

    def modelled_return(self, states: Tensor) -> ModelledReturn:
        """Discounted return of the policy as it acts in evaluations, in the one-step model.

        Args:
            states: States it starts from, shape (B, S).

        Raises:
            MissingFileError: If there is no checkpoint of the model.
            UserError: If none is named, or it is of another kind, or of other states or actions than the data.
        """
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        dynamics = self._one_step_model.to(self.device)
        return modelled_return(dynamics, self.actor("eval"), states, data.reward_of, self.critics.discount)

    @functools.cached_property  # which makes it no part of the module's weights
    def _one_step_model(self) -> Dynamics:
        """The one-step model, read where it is first needed; draws nothing."""
        if self._dynamics is None:
            raise UserError("the expected return in a one-step model needs model.dynamics, its checkpoint, got null")
        data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        info = data.store.info
        with torch.random.fork_rng(devices=[]):
            model = load_dynamics(self._dynamics, info.schema, info.action_dim, info.action_bounds)
        return model.requires_grad_(False).eval()

    def result_lines(self, metrics: Mapping[str, float]) -> list[str]:
        """What a test measured, one line each; the expected return first."""
        if "test/expected_return" not in metrics:
            return super().result_lines(metrics)
        mean, error = metrics["test/expected_return"], metrics["test/expected_return_error"]
        by = "" if self._dynamics is None else ", by the critics"
        lines = [f"expected     discounted return of {mean:.4g} +- {error:.2g} from states of the data{by}"]
        if self._dynamics is not None:
            mean, error = metrics["test/modelled_return"], metrics["test/modelled_return_error"]
            lines.insert(0, f"expected     discounted return of {mean:.4g} +- {error:.2g} from states of the data")
        return [*lines, *super().result_lines(metrics)]

    def occupancy_loss(self, family: FamilyValues) -> Tensor:
        """Expectile loss of the critics against the occupancy's values, one member per state, shape (); draws them.

        Args:
            family: Values of the members.
        """
        size, members = family.values.shape
        chosen = torch.randint(members, (size,), device=family.values.device)
        rows = torch.arange(size, device=family.values.device)
        values = self.critics.online(family.observation, family.actions[rows, chosen])
        return expectile_loss(values, family.values[rows, chosen].expand_as(values), self.expectile).mean()

    def policy_loss(self, family: FamilyValues) -> tuple[Tensor, Tensor]:
        """Loss on actions of the members, drawn by ``exp(Q / temperature)``, and the divergence from them, both ().

        Args:
            family: Actions of the members.
        """
        observation, actions = family.observation[: self.num_states], family.actions[: self.num_states]
        tilt = self.critics.values(observation, actions) / self.temperature
        uniform = torch.rand(len(tilt), self.actions_per_state, device=tilt.device)
        drawn = tilted_actions(actions, tilt, uniform).flatten(0, 1)
        states = observation.repeat_interleave(self.actions_per_state, 0)
        return self.policy.cloning_loss(self.objective, states, drawn).mean(), tilt_divergence(tilt).mean()
