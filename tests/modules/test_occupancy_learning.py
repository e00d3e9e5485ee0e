"""Occupancies learned in a few hundred updates, against their closed forms."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import read_segment
from flowmatch_rl.models import Horizon
from flowmatch_rl.modules import ObservedSteps, OccupancyModule
from flowmatch_rl.nets import Architecture, EmaSettings, FilmUNetArchitecture, VelocityArchitecture, update_ema
from flowmatch_rl.objectives import TD2CFM, MonteCarloCFM
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.solvers import Midpoint
from flowmatch_rl.testbeds import LinearGaussianProcess, LinearPolicy

DISCOUNT = 0.8
PROCESS = LinearGaussianProcess(transition=[[0.8]], control=[[0.5]], drift=[0.1], noise_factor=[[0.3]])
POLICY = LinearPolicy(gain=[[-0.3]], bias=[0.6])
UNITS = TableSchema(("s0",), (0.4,), (0.8,))
SOURCES = torch.tensor([[-1.0, 0.5], [0.2, -0.8], [1.2, 0.9]])
"""States and actions, most of them not of the policy."""

VARIANTS: dict[str, dict[str, Any]] = {
    "squared temporal difference": {"policy": POLICY},
    "from the current state": {"policy": POLICY, "horizon": Horizon(DISCOUNT, first_state="current")},
    "three steps and the next action of the data": {"policy": None, "segments": ObservedSteps(3)},
    "Monte Carlo": {"policy": None, "objective": MonteCarloCFM()},
}


def exact_points(module: OccupancyModule, count: int) -> Tensor:
    """Draws of the exact occupancy, shape (3, count)."""
    generator = torch.Generator().manual_seed(0)
    state, action = (SOURCES[:, i : i + 1].double()[:, None].expand(-1, count, -1) for i in (0, 1))
    mixture = PROCESS.occupancy(state, action, POLICY, DISCOUNT)
    uniform, noise = (draw(3, count, generator=generator, dtype=torch.float64) for draw in (torch.rand, torch.randn))
    points = mixture.draw(uniform, noise[..., None])[..., 0]
    if module.model.horizon.first_state == "current":
        now = torch.rand(3, count, generator=generator) < 1.0 - DISCOUNT
        points = torch.where(now, state[..., 0], points)
    return points


def distance(module: OccupancyModule, count: int = 1_000) -> float:
    """Mean W1 over the sources between modelled and exact futures; on the line it is that of sorted points."""
    noise = torch.special.ndtri((torch.arange(count) + 0.5) / count)[None, :, None].expand(3, -1, -1)
    made = module.model.sample(noise.contiguous(), SOURCES[:, None, :1], SOURCES[:, None, 1:])[..., 0]
    gap = made.double().sort(1).values - exact_points(module, count).sort(1).values
    return gap.abs().mean().item()


def batch_of(num_steps: int, size: int = 256) -> dict[str, Tensor]:
    """Steps from random states: the first action is random, the later ones are the policy's."""
    state, action = 0.4 + 1.2 * torch.randn(size, 1), 2.0 * torch.rand(size, 1) - 1.0
    states, _ = PROCESS.futures(POLICY, state, action, torch.randn(40, size, 1))
    steps = (torch.log1p(-torch.rand(size)) / torch.log(torch.tensor(DISCOUNT))).long().clamp_max(39)
    return {
        "observation": state,
        "action": action,
        "arrivals": states[:num_steps].movedim(0, 1),
        "terminated": torch.zeros(size, num_steps, dtype=torch.bool),
        "length": torch.full((size,), num_steps),
        "embedding": torch.empty(size, 0),
        "next_action": POLICY.act(states[num_steps - 1]),
        "future": states[steps, torch.arange(size)],
    }


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_few_hundred_updates_come_close_to_the_exact_occupancy(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "objective": TD2CFM(solver=Midpoint(num_steps=2)),
        "horizon": Horizon(DISCOUNT),
        "network": VelocityArchitecture(hidden_dim=48, num_blocks=1, time_features=16),
        "sampler": OdeSampler(Midpoint(num_steps=5)),
    }
    module = OccupancyModule(UNITS, 1, ema=EmaSettings(0.95), **(parts | options))
    optimizer = torch.optim.Adam(module.flow.parameters(), lr=3e-3)
    before = distance(module)
    for _ in range(400):
        optimizer.zero_grad()
        direct, bootstrap = module.loss(read_segment(batch_of(module.segments.observed_steps)))
        (direct + bootstrap).mean().backward()
        optimizer.step()
        update_ema(module.flow_ema, module.flow, 0.95)
    after = distance(module)
    assert before > 0.4
    assert after < 0.12


def outside(module: OccupancyModule) -> float:
    """Fraction of the modelled futures outside the range of states that occur in practice, -4 to 4."""
    noise = torch.randn(3, 500, 1, generator=torch.Generator().manual_seed(0))
    made = module.model.sample(noise, SOURCES[:, None, :1], SOURCES[:, None, 1:])
    return (made.abs() > 4.0).float().mean().item()


@pytest.mark.parametrize(
    "network",
    [
        VelocityArchitecture(hidden_dim=48, num_blocks=1, time_features=16),
        VelocityArchitecture(48, 3, "silu", max_frequency=10.0, balanced_inputs=True),
        FilmUNetArchitecture((32, 32), 16, time_dims=(16,), condition_dims=(32,)),
    ],
    ids=["plain", "balanced", "film"],
)
def test_bootstrapping_keeps_no_states_far_outside_the_data(network: Architecture) -> None:
    """They come from the field that a network begins with, and are forgotten at the rate of the clock alone."""
    torch.manual_seed(0)
    solver = Midpoint(num_steps=2)
    parts: dict[str, Any] = {"objective": TD2CFM(solver=solver), "sampler": OdeSampler(solver)}
    module = OccupancyModule(UNITS, 1, policy=POLICY, network=network, horizon=Horizon(0.95), **parts)
    optimizer = torch.optim.Adam(module.flow.parameters(), lr=1e-3)
    assert outside(module) < 0.01
    for _ in range(100):
        optimizer.zero_grad()
        direct, bootstrap = module.loss(read_segment(batch_of(1)))
        (direct + bootstrap).mean().backward()
        optimizer.step()
        update_ema(module.flow_ema, module.flow, 0.95)
    assert outside(module) < 0.01
