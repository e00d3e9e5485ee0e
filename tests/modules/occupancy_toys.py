"""Small occupancy models, batches of segments, and a cycle whose states hold their time."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.models import Flow, Horizon, Occupancy, OccupancyInputs
from flowmatch_rl.modules import OccupancyModule
from flowmatch_rl.nets import VelocityArchitecture
from flowmatch_rl.objectives import FirstState
from flowmatch_rl.paths import AffinePath
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearPolicy

PLANE = TableSchema(("x", "y", "speed"), (3.0, -1.0, 50.0), (2.0, 0.2, 13.0))
"""Awkward units: the product of the scales is 5.2."""

SMALL = VelocityArchitecture(hidden_dim=16, num_blocks=1, time_features=8)
PLANE_POLICY = LinearPolicy(gain=[[0.1, -0.2, 0.0], [0.0, 0.3, 0.01]])


def occupancy(schema: TableSchema = PLANE, action_dim: int = 2, **options: Any) -> OccupancyModule:
    """A small model with weights of a fixed seed, none of which is zero as in a new model."""
    torch.manual_seed(0)
    small = {"network": SMALL, "policy": PLANE_POLICY, "sampler": OdeSampler(Midpoint(3)), "horizon": Horizon(0.9)}
    module = OccupancyModule(schema, action_dim, **(small | options))
    torch.nn.init.orthogonal_(module.flow.network.to_velocity.weight, gain=2.0**0.5)
    module.flow_ema.load_state_dict(module.flow.state_dict())
    return module


def attach(module: OccupancyModule, **options: Any) -> OccupancyModule:
    """A model whose hooks may be called without a run."""
    module.trainer = cast(
        Any,
        SimpleNamespace(
            **{"log_every_n_steps": 10**9, "global_step": 1, "is_last_batch": False, "max_steps": -1} | options
        ),
    )
    return module


def segments(size: int = 12, num_steps: int = 1, next_action: bool = False, **more: Tensor) -> dict[str, Tensor]:
    """A batch of segments in the units of ``PLANE``, a few of which terminate."""
    generator = torch.Generator().manual_seed(1)

    def states(*shape: int) -> Tensor:
        unit = torch.randn(*shape, 3, generator=generator)
        return unit * torch.tensor(PLANE.scale) + torch.tensor(PLANE.shift)

    batch = {
        "observation": states(size),
        "action": 2.0 * torch.rand(size, 2, generator=generator) - 1.0,
        "arrivals": states(size, num_steps),
        "terminated": torch.zeros(size, num_steps, dtype=torch.bool),
        "length": torch.full((size,), num_steps),
        "embedding": torch.empty(size, 0),
    }
    batch["terminated"][::5, -1] = True
    if next_action:
        batch["next_action"] = 2.0 * torch.rand(size, 2, generator=generator) - 1.0
    return batch | more


CYCLE = 1000
"""States of the cycle; the state after k steps from c is (c + k, -(c + k)), far from coming round."""


def cycle_rollouts(starts: Sequence[int], num_steps: int, copies: int = 1) -> Rollouts:
    """Trajectories of the cycle."""
    first = torch.tensor(starts, dtype=torch.float32)
    time = first[:, None, None] + torch.arange(1, num_steps + 1)
    states = torch.stack([time, -time], -1).expand(-1, copies, -1, -1)
    count = len(starts)
    return Rollouts(
        observation=torch.stack([first, -first], -1),
        action=torch.zeros(count, 1),
        embedding=torch.empty(count, 0),
        states=states,
        length=torch.full((count, copies), num_steps),
        ended=torch.zeros(count, copies, num_steps, dtype=torch.bool),
    )


class ExactCycle(Occupancy):
    """The cycle as a model that knows its future: the k-th quantile of the noise becomes the k-th quantile of time.

    Args:
        first_state: Index convention.
        discount: Discount.
        columns: Modelled columns.
        ends_after: Step after which the state stays, None for never.
        late: Added to the time of every future state.
    """

    def __init__(
        self,
        first_state: FirstState = "arrival",
        discount: float = 0.8,
        columns: list[str] | None = None,
        ends_after: int | None = None,
        late: float = 0.0,
    ) -> None:
        schema = TableSchema(("time", "back"), (0.0, 0.0), (1.0, 1.0))
        inputs = OccupancyInputs(schema, 1, 0, Horizon(discount, 0.0, first_state=first_state), columns)
        flow = Flow(SMALL.build(inputs.sample_dim, inputs.condition_dim), AffinePath())
        super().__init__(flow, inputs, OdeSampler(Midpoint(1)))
        self.ends_after, self.late = ends_after, late
        self.asked: list[Any] = []

    def sample(
        self,
        noise: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
    ) -> Tensor:
        assert isinstance(discount, float)
        self.asked.append(discount)
        uniform = torch.special.ndtr(noise[..., 0].double()).clamp_max(1.0 - 1e-12)
        steps = (torch.log1p(-uniform) / torch.log(torch.tensor(discount, dtype=torch.float64))).floor()
        steps = steps + 1.0 if self.horizon.first_state == "arrival" else steps
        steps = steps if self.ends_after is None else steps.clamp_max(self.ends_after)
        time = observation[..., 0] + steps + self.late
        return torch.stack([time, -time], -1).float()[..., self.inputs.modelled]

    def log_prob(
        self,
        state: Tensor,
        observation: Tensor,
        action: Tensor,
        embedding: Tensor | None = None,
        discount: Tensor | float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self.asked.append(("log_prob", len(state)))
        return -(state[:, 0] - observation[:, 0])
