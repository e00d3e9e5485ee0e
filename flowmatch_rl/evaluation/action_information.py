"""How much of the spread of future states is due to the action."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.batches import Rollouts
from flowmatch_rl.evaluation.futures import Gather, check_finite
from flowmatch_rl.metrics import variance_of_means
from flowmatch_rl.models import Occupancy

BLIND = 0.1
"""A model is blind to the action whose action information is less than this fraction of that of roll-outs."""


@dataclass(frozen=True)
class ActionEffect:
    """Variances of future states of N source states where the action is uniform on [-1, 1]^A.

    Both are sums over the modelled entries, in squared standard deviations of the data.

    Attributes:
        between: Variance over actions of the mean future state, shape (N,); unbiased, thus negative at times.
        within: Variance of future states given the action, mean over actions, shape (N,).
    """

    between: Tensor
    within: Tensor

    def information(self, gather: Gather | None = None) -> Tensor:
        """Action information ``Var_a E[X | s, a] / E_a Var[X | s, a]``, dimensionless, shape ().

        Both variances are means over the source states. 0 if the action changes nothing.

        Args:
            gather: Joins the values of all processes; None if there is one.
        """
        parts = (self.between, self.within)
        between, within = (part.mean() for part in (parts if gather is None else map(gather, parts)))
        return torch.where(between == 0.0, between, between / within.clamp_min(0.0)).float()


def modelled_effect(
    model: Occupancy, rollouts: Rollouts, actions: Tensor, discount: float, number: int, generator: torch.Generator
) -> ActionEffect:
    """Effect of the action on the future states of a model; the actions of a state have the same noise.

    Args:
        model: The model.
        rollouts: N source states.
        actions: Actions tried in each, shape (N, M, A), M at least 2.
        discount: Discount per environment step.
        number: Future states K of each state and action, at least 2.
        generator: Source of noise, on the CPU.

    Raises:
        RunError: If a future state is not finite.
    """
    noise = model.draw_noise(len(actions), 1, number, generator=generator).expand(-1, actions.shape[1], -1, -1)
    made = model.futures(noise, rollouts.observation[:, None], actions, rollouts.embedding[:, None], discount)
    check_finite(made)
    made = made.double() / model.inputs.scale
    return ActionEffect(variance_of_means(made).sum(-1), made.var(-2).mean(-2).sum(-1))


def real_effect(model: Occupancy, rollouts: Rollouts, discount: float) -> ActionEffect | None:
    """Effect of the action on the future states of trajectories, all their times weighted by the discount.

    Where a trajectory stops without termination the distribution of its times is cut.

    Args:
        model: The model, whose entries of the state and first state are used.
        rollouts: N source states in which actions were tried.
        discount: Discount per environment step.

    Returns:
        Effect; None where no actions were tried.
    """
    if rollouts.tried_states is None or rollouts.tried_ended is None:
        return None
    entries, counts_now = model.inputs.modelled, model.horizon.first_state == "current"
    source = rollouts.observation[:, None, None, None, entries]
    # Relative to the source state, which then adds nothing where it is counted.
    moved = (rollouts.tried_states[..., entries] - source).double() / model.inputs.scale  # (N, M, R, T, D)
    num_steps, stays = moved.shape[-2], rollouts.tried_ended[..., -1:]
    time = torch.arange(num_steps + 1, dtype=moved.dtype, device=moved.device) + float(counts_now)
    powers = discount**time
    weights, rest = (1.0 - discount) * powers[:-1], powers[-1]

    def expected(values: Tensor) -> Tensor:
        seen = torch.einsum("...td,t->...d", values, weights)
        return torch.where(stays, seen + rest * values[..., -1, :], seen / (1.0 - rest))

    first, second = expected(moved), expected(moved.square())  # (N, M, R, D)
    # The square of a mean over R trajectories is too large by the variance of that mean.
    squared_mean = first.mean(-2).square() - first.var(-2) / first.shape[-2]
    within = (second.mean(-2) - squared_mean).mean(-2)
    return ActionEffect(variance_of_means(first).sum(-1), within.sum(-1))


def action_lines(metrics: Mapping[str, float], suffix: str) -> list[str]:
    """Lines of a summary on the action information, and a warning where the model is blind to the action.

    Args:
        metrics: Metrics by name, without the suffix.
        suffix: Marks the discount.
    """
    modelled, real = metrics.get("test/action_information"), metrics.get("test/action_information_real")
    if modelled is None:
        return []
    beside = "" if real is None else f", roll-outs {real:.3g}"
    lines = [f"{f'action{suffix}':<12} information {modelled:.3g} (variance due to the action / other){beside}"]
    if real is not None and modelled < BLIND * real:
        lines.append(
            f"{f'warning{suffix}':<12} the model is nearly blind to the action: do not plan or improve a policy by it"
        )
    return lines
