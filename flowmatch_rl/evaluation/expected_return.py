"""The discounted return expected of a policy, by its critics and in a one-step model of its environment."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.models import Dynamics
from flowmatch_rl.shapes import check_shape

_REST = 0.01
"""Weight of what lies beyond the last step."""


def stated_return(values: Tensor) -> tuple[Tensor, Tensor]:
    """Discounted return that critics state, and its standard error.

    The error is that of the mean over the states, and of the critics among each other.

    Args:
        values: Values that M critics state for B states, units of the return, shape (M, B), B at least 2.

    Returns:
        Mean and standard error, each of shape ().
    """
    of_states, of_members = values.mean(0), values.mean(1)
    variance = of_states.var() / len(of_states) + of_members.var(correction=0) / len(of_members)
    return values.mean(), variance.sqrt()


@dataclass(frozen=True)
class ModelledReturn:
    """Discounted returns from B states.

    Attributes:
        returns: Discounted return, units of the return, shape (B,); rewards beyond the last step count as the mean of
            those of its last tenth.
        spread: Mean disagreement of the model's members over the steps, in units of the change of one step.
        steps: Steps that were followed.
    """

    returns: Tensor
    spread: float
    steps: int

    @property
    def mean(self) -> Tensor:
        """Mean over the states, shape ()."""
        return self.returns.mean()

    @property
    def error(self) -> Tensor:
        """Standard error of the mean over the states, shape (); the model's own error is no part of it."""
        return self.returns.std() / len(self.returns) ** 0.5


@torch.no_grad()
def modelled_return(
    dynamics: Dynamics,
    act: Callable[[Tensor], Tensor],
    states: Tensor,
    reward_of: Callable[[Tensor], Tensor],
    discount: float,
    generator: torch.Generator | None = None,
) -> ModelledReturn:
    """Follow a policy in a one-step model until a hundredth of the weight of rewards remains.

    Args:
        dynamics: The model.
        act: The policy: actions in [-1, 1] (B, A) of states (B, S).
        states: States it starts from, in the units of the environment, shape (B, S), B at least 2.
        reward_of: Rewards (B,) of the states (B, S) that steps arrive in.
        discount: Discount per environment step, in [0, 1).
        generator: Noise of a random model, on any device; the global one if None.

    Returns:
        Discounted returns.

    Raises:
        UserError: If the discount is out of its range.
        ValueError: If the reward has another shape.
    """
    check_range("[0, 1)", discount=discount)
    steps = max(1, math.ceil(math.log(_REST) / math.log(discount))) if discount > 0.0 else 1
    alive, weight, spread = torch.ones_like(states[:, 0]), 1.0, 0.0
    total, late, last_tenth = torch.zeros_like(alive), torch.zeros_like(alive), max(1, steps // 10)
    for step in range(steps):
        moved = dynamics.step(states, act(states), generator)
        states = moved.arrival
        reward = reward_of(states)
        check_shape("the reward of the states", reward, (len(states),))
        paid = alive * reward
        total += weight * paid
        late += paid if step >= steps - last_tenth else 0.0
        alive = alive * (1.0 - moved.terminal)
        weight *= discount
        spread += float(moved.spread.mean()) / steps
    return ModelledReturn(total + weight / (1.0 - discount) * late / last_tenth, spread, steps)
