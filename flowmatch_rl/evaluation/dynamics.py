"""How far a one-step model departs from the environment when a policy, or recorded actions, are followed in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.metrics import energy_distance
from flowmatch_rl.models import Dynamics
from flowmatch_rl.types import Policy

HORIZONS = (1, 4, 16, 64)
"""Steps after which the departure is a metric."""

_DRAWS = 32
"""Trajectories of the model from each source state."""


@dataclass(frozen=True)
class RolloutErrors:
    """Departures of a one-step model from the environment after P numbers of steps, means over the source states.

    Attributes:
        steps: Numbers of steps, ascending.
        error: Root-mean-square distance between the mean modelled and the mean real state, in standard deviations of
            the state, shape (P,). What the scatter of a few trajectories adds to it is subtracted where there are
            several; against a single one it does not fall below the spread of the real states.
        unmoved: The same for a model in which nothing ever changes, shape (P,).
        distance: Squared energy distance between modelled and real states, in standard deviations of the state, shape
            (P,), zero in the mean for a model that is right; None where there is one trajectory of each.
    """

    NAMES: ClassVar = tuple(f"{name}/{step}" for name in ("dynamics_error", "dynamics_distance") for step in HORIZONS)
    """Metrics that there may be."""

    steps: tuple[int, ...]
    error: Tensor
    unmoved: Tensor
    distance: Tensor | None

    def metrics(self) -> dict[str, Tensor]:
        """``dynamics_error/K``, and where it is known ``dynamics_distance/K``, after K steps."""
        known = {"dynamics_error": self.error, "dynamics_distance": self.distance}
        return {
            f"{name}/{step}": values[place]
            for name, values in known.items()
            if values is not None
            for place, step in enumerate(self.steps)
            if step in HORIZONS
        }


def dynamics_lines(metrics: Mapping[str, float]) -> list[str]:
    """What an evaluation of a one-step model measured, one line each.

    Args:
        metrics: Metrics by name.
    """
    lines = []
    for name, what in (("dynamics_error", "error of the one-step model"), ("dynamics_distance", "energy distance")):
        found = {key.rpartition("/")[2]: value for key, value in metrics.items() if f"/{name}/" in key}
        steps = ", ".join(f"{value:.2g} after {number}" for number, value in found.items())
        if found:
            lines.append(f"{'dynamics':<12} {what} {steps} steps, in standard deviations of the state")
    return lines


@torch.no_grad()
def rollout_errors(
    dynamics: Dynamics, policy: Policy | None, rollouts: Rollouts, steps: Sequence[int] = HORIZONS, seed: int = 0
) -> RolloutErrors:
    """Follow a policy in the model from the source states of real trajectories.

    Trajectories count until they terminate, real and modelled ones.

    Args:
        dynamics: The model.
        policy: The policy that the trajectories follow; None to repeat their recorded actions.
        rollouts: Source states with real trajectories.
        steps: Numbers of steps to compare after, ascending.
        seed: Seed of the actions and of the model's noise.

    Returns:
        Departures after those numbers of steps that some trajectory reaches; none where there is nothing to compare
        with, or to follow.
    """
    if rollouts.states is None or rollouts.length is None or rollouts.ended is None:
        return _joined([], [])
    if policy is None and rollouts.actions is None:
        return _joined([], [])
    compared = {}
    made = _follow(dynamics, policy, rollouts, [step for step in steps if step <= rollouts.states.shape[2]], seed)
    for step, (state, alive) in made.items():
        known = rollouts.length >= step
        if step > 1:
            known &= ~rollouts.ended[:, :, step - 2]
        real = rollouts.states[:, :, step - 1] / dynamics.state_scale
        usable = known.any(1) & alive.any(1)
        if bool(usable.any()):
            parts = (state / dynamics.state_scale, alive, real, known, rollouts.observation / dynamics.state_scale)
            compared[step] = _compare(*(part[usable] for part in parts))
    return _joined(list(compared), list(compared.values()))


def _follow(
    dynamics: Dynamics, policy: Policy | None, rollouts: Rollouts, steps: Sequence[int], seed: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """Modelled states (N, K, S) after numbers of steps, and which had not terminated before, boolean, (N, K)."""
    generator = torch.Generator(rollouts.observation.device).manual_seed(seed)
    number = len(rollouts.observation)
    # Where nothing is drawn but terminations, one trajectory stands for all.
    different = _DRAWS if dynamics.is_random or (policy is not None and policy.is_random) else 1
    state, action, embedding = (
        part.repeat_interleave(different, 0) for part in (rollouts.observation, rollouts.action, rollouts.embedding)
    )
    alive, made = torch.ones(number, _DRAWS, dtype=torch.bool, device=state.device), {}
    for time in range(1, max(steps, default=0) + 1):
        step = dynamics.step(state, action, generator)
        state = step.arrival
        if time in steps:
            made[time] = state.unflatten(0, (number, different)).expand(-1, _DRAWS, -1), alive
        goes_on = torch.rand(number, _DRAWS, generator=generator, device=alive.device)
        alive = alive & (goes_on >= step.terminal.unflatten(0, (number, different)))
        if policy is not None:
            action = policy.act(state, embedding, generator)
        elif rollouts.actions is not None:
            action = rollouts.actions[:, 0, time - 1].repeat_interleave(different, 0)
    return made


def _compare(
    made: Tensor, alive: Tensor, real: Tensor, known: Tensor, source: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Distances between modelled (N, K, S) and real states (N, R, S), and between real ones and the source (N, S)."""
    mean, noise = _moments(made, alive)
    real_mean, real_noise = _moments(real, known)
    error = (mean - real_mean).square() - noise - real_noise
    unmoved = (source - real_mean).square() - real_noise
    distances = [
        energy_distance(made[row, alive[row]], real[row, known[row]])
        for row in range(len(made))
        if min(int(alive[row].sum()), int(known[row].sum())) > 1
    ]
    root, unmoved_root = (part.mean().clamp_min(0.0).sqrt() for part in (error, unmoved))
    return root, unmoved_root, torch.stack(distances).mean() if distances else None


def _moments(states: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Means of some of the states (N, K, S) of each row, shape (N, S), and their squared standard errors.

    The latter are 0 where there is a single state, which does not tell.
    """
    weight = kept[..., None].to(states.dtype)
    count = weight.sum(1)
    mean = (weight * states).sum(1) / count
    squares = (weight * (states - mean[:, None]).square()).sum(1)
    return mean, squares / (count * (count - 1.0).clamp_min(1.0))


def _joined(steps: Sequence[int], compared: Sequence[tuple[Tensor, Tensor, Tensor | None]]) -> RolloutErrors:
    if not compared:
        return RolloutErrors((), torch.empty(0), torch.empty(0), None)
    errors, unmoved, distances = zip(*compared, strict=True)
    known = [distance for distance in distances if distance is not None]
    whole = len(known) == len(compared)
    return RolloutErrors(tuple(steps), torch.stack(errors), torch.stack(unmoved), torch.stack(known) if whole else None)
