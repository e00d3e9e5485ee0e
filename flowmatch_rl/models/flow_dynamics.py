"""A one-step model of random environments: flows from noise to the change of the state."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.models.dynamics import Dynamics, DynamicsSettings, Step, spread_of
from flowmatch_rl.models.flow import Flow
from flowmatch_rl.models.noise import draw_normal, draw_uniform
from flowmatch_rl.nets import TerminationNetwork, VelocityArchitecture
from flowmatch_rl.objectives import ConditionalFlowMatching, FlowObjective
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.samplers import OdeSampler, Sampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.shapes import check_same_shape
from flowmatch_rl.solvers import Midpoint

_LARGEST_GAP = 0.25
"""Most by which the model's draws may differ from what happened more, or less, than from one another, in units of the
change of one step."""


@dataclass(frozen=True)
class StochasticDynamics(DynamicsSettings):
    """An ensemble of flows from noise to the change of the state, which draw the state that follows.

    Args:
        num_members: Members M, at least 2: their disagreement under the same noise says how far they can be trusted.
        network: Shape of the network of each.
        path: Path from noise to changes.
        objective: What the networks predict and how they learn it.
        sampler: How a change is drawn, deterministic given its noise.

    Raises:
        UserError: If there are less than two members, or the sampler adds noise.
    """

    free: ClassVar = ("sampler",)
    num_members: int = 2
    network: VelocityArchitecture = VelocityArchitecture(
        hidden_dim=128, activation="silu", time_features=64, max_frequency=10.0, balanced_inputs=True
    )
    path: AffinePath = AffinePath()
    objective: FlowObjective = ConditionalFlowMatching()
    sampler: Sampler = OdeSampler(Midpoint(num_steps=4))

    def __post_init__(self) -> None:
        check_range("[2, inf)", num_members=self.num_members)
        if self.sampler.adds_noise:
            raise UserError(
                f"a one-step model needs a sampler that adds no noise, such as OdeSampler, got {self.sampler}"
            )

    def build(self, schema: TableSchema, action_dim: int) -> "FlowDynamics":
        """Build the model; see ``DynamicsSettings``."""
        return FlowDynamics(schema, action_dim, self)

    def build_member(self, state_dim: int, action_dim: int) -> Flow:
        """Build the flow of a member."""
        durations = self.objective.uses_duration
        network = self.network.build(state_dim, state_dim + action_dim, durations)
        flow = Flow(network, self.path, prediction=self.objective.prediction, averages=durations)
        flow.check_sampler(self.sampler)
        return flow


class FlowDynamics(Dynamics):
    """An ensemble of flows from noise to the change of the state in one step, given state and action.

    A step is that of one member, drawn for each state. Where the members know the environment, each of them takes the
    same noise to the same change, since the flow of a path is unique: what they differ by is what they do not know,
    however random the environment is. Whether a step terminates is learned as a probability given the state, the action
    and the state arrived in, so that it belongs to the state that was drawn.

    Args:
        schema: Names and units of the S entries of the state.
        action_dim: Dimension A of the action.
        settings: Members, and how they learn and draw.
    """

    is_random: ClassVar = True

    def __init__(self, schema: TableSchema, action_dim: int, settings: StochasticDynamics) -> None:
        super().__init__(schema, action_dim, settings)
        state_dim = schema.sample_dim
        self._objective, self._sampler = settings.objective, settings.sampler
        self.members = nn.ModuleList(settings.build_member(state_dim, action_dim) for _ in range(settings.num_members))
        self.termination = TerminationNetwork(2 * state_dim + action_dim)

    def loss(
        self,
        observation: Tensor,
        action: Tensor,
        arrival: Tensor,
        terminated: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Loss of the flows, each with noise of its own, and negative log-likelihood of the terminations."""
        check_same_shape(observation=observation, arrival=arrival)
        x_1, condition = self.changes(observation, arrival), self._condition(observation, action)
        losses = []
        for flow in self._flows():
            noise = draw_normal(x_1.shape, x_1.device, generator)
            uniform = draw_uniform((self._objective.num_uniforms, len(x_1)), x_1.device, generator)
            points = self._objective.points(flow.path, flow.source.transform(noise), x_1, uniform, flow.t_min)
            losses.append(flow.loss(self._objective, points, condition))
        ends = self.termination.loss(self._ending(condition, arrival), terminated)
        return torch.stack(losses).mean(0) + ends

    @torch.no_grad()
    def step(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        """Draw a step of one member for each state; all members take the same noise."""
        device, condition = observation.device, self._condition(observation, action)
        noise = draw_normal(observation.shape, device, generator)
        uniform = draw_uniform((len(observation),), device, generator)
        with torch.autocast(device.type, enabled=False):
            changes = torch.stack([flow.sample(noise, self._sampler, condition) for flow in self._flows()])
        chosen = (uniform * len(changes)).long()
        arrival = self.move(observation, changes[chosen, torch.arange(len(chosen), device=device)])
        terminal = self.termination.probability(self._ending(condition, arrival))
        return Step(arrival, spread_of(changes), terminal)

    def misfit(
        self, observation: Tensor, action: Tensor, arrival: Tensor, generator: torch.Generator | None = None
    ) -> str | None:
        """That its draws scatter more, or less, than the environment does."""
        first, second = (self.step(observation, action, generator).arrival for _ in range(2))
        within, between = (
            float(self.changes(first, other).square().mean(-1).sqrt().mean()) for other in (second, arrival)
        )
        if abs(between - within) <= _LARGEST_GAP:
            return None
        return (
            f"the one-step model's draws differ by {within:.2g} of a step's change from one another and by "
            f"{between:.2g} from what happened, which should be the same: it is trained too shortly (num_updates), or "
            "its learning rate is too high"
        )

    def _flows(self) -> list[Flow]:
        return [flow for flow in self.members if isinstance(flow, Flow)]

    def _condition(self, observation: Tensor, action: Tensor) -> Tensor:
        check_same_shape(state=observation[:, 0], action=action[:, 0])
        return torch.cat([self.standardise(observation), action], dim=-1)

    def _ending(self, condition: Tensor, arrival: Tensor) -> Tensor:
        """State, action and state arrived in."""
        return torch.cat([condition, self.standardise(arrival)], dim=-1)
