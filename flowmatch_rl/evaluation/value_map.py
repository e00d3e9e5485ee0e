"""The value of a policy over the plane of a process, and where its actions lead."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.models.actor import ParticleActor
from flowmatch_rl.testbeds import PlanarProcess
from flowmatch_rl.types import Reward

_CELLS, _PLACES, _SAMPLES = 61, 7, 10


@dataclass(frozen=True)
class ValueMap:
    """Reward, value and actions of a policy at states of a plane, all entries but the position 0. All on the CPU.

    Attributes:
        labels: Names of the two coordinates.
        half_width: Half the side of the square that is divided into G x G cells, in units of x.
        walls: Walls as boxes (x_low, y_low, x_high, y_high), shape (W, 4).
        rewards: Reward at the middle of each cell, shape (G, G), y along the rows.
        values: Value of the policy's action there, units of the return, shape (G, G).
        places: Positions of a coarser grid outside the walls, shape (P, 2).
        moves: Where samples of the policy's action lead from there in one step, in units of x, shape (P, N, 2).
        paths: Positions of roll-outs, shape (T, 2) each.
    """

    labels: tuple[str, str]
    half_width: float
    walls: Tensor
    rewards: Tensor
    values: Tensor
    places: Tensor
    moves: Tensor
    paths: tuple[Tensor, ...]


@torch.no_grad()
def map_values(
    actor: ParticleActor,
    reward: Reward,
    process: PlanarProcess,
    episodes: Sequence[Tensor] = (),
    device: torch.device | str = "cpu",
) -> ValueMap:
    """Evaluate a policy over the plane, with noise of its own that leaves the global one alone.

    Args:
        actor: The policy as evaluations act by it.
        reward: Reward of the state that a step arrives in.
        process: Process whose states the policy observes.
        episodes: States of roll-outs, shape (T, S) each.
        device: Device of the policy.
    """
    generator = torch.Generator().manual_seed(0)
    fine, coarse = _grid(process, _CELLS), _grid(process, _PLACES)
    free = coarse[~_in_walls(coarse, process.walls())]
    states = fine.to(device)
    values = actor.values(states, actor(states, generator)[:, None])[:, 0]
    spread = free[:, None].expand(-1, _SAMPLES, -1)
    actions = actor.sampling()(spread.to(device), generator).cpu()
    arrivals, _ = process.step(spread, actions, torch.zeros(*spread.shape[:-1], process.noise_dim))
    return ValueMap(
        (process.columns[0], process.columns[1]),
        process.half_width,
        process.walls(),
        reward.evaluate(fine, process.columns).float().unflatten(0, (_CELLS, _CELLS)),
        values.cpu().float().unflatten(0, (_CELLS, _CELLS)),
        free[:, :2],
        (arrivals - spread)[..., :2],
        tuple(states[:, :2].cpu() for states in episodes),
    )


def _grid(process: PlanarProcess, number: int) -> Tensor:
    """States whose positions are the middles of the cells of a square, x running fastest, shape (number^2, S)."""
    axis = process.half_width * ((torch.arange(number) + 0.5) / number * 2.0 - 1.0)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    states = torch.zeros(number**2, len(process.columns))
    states[:, 0], states[:, 1] = x.flatten(), y.flatten()
    return states


def _in_walls(states: Tensor, walls: Tensor) -> Tensor:
    """Whether positions lie in a wall or on its edge, shape (B,)."""
    point, boxes = states[:, None, :2], walls.to(states)
    return ((point >= boxes[:, :2]) & (point <= boxes[:, 2:])).all(-1).any(-1)
