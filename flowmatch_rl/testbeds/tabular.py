"""Bellman backups of n steps on finite chains, repeated with an error in each.

The bias of a bootstrapped target accumulates with the horizon (Park et al., arXiv:2506.04168). On a finite chain this
can be computed: a table is replaced by ``near + far @ table + error`` again and again, and ends at the solution of a
linear system.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import check_range
from flowmatch_rl.shapes import check_same_shape, check_shape


def accumulated_bias(bias: float, discount: float, num_steps: int = 1) -> float:
    """Error that a constant bias of every backup adds up to, ``bias / (1 - discount^n)``.

    Args:
        bias: What is added to a value in each backup, in the unit of the value.
        discount: Discount per step, in [0, 1).
        num_steps: Steps n of a backup, at least 1.

    Raises:
        UserError: If a number is out of its range.
    """
    check_range("[0, 1)", discount=discount)
    check_range("[1, inf)", num_steps=num_steps)
    return bias / (1.0 - discount**num_steps)


def accumulated_strays(fraction: float, discount: float, num_steps: int = 1) -> float:
    """Probability outside the chain if every backup puts a fraction b there, ``b / (1 - (1 - b) discount^n)``.

    Args:
        fraction: Fraction b of each bootstrapped or observed state that a backup moves outside, in [0, 1].
        discount: Discount per step, in [0, 1).
        num_steps: Steps n of a backup, at least 1.

    Raises:
        UserError: If a number is out of its range.
    """
    check_range("[0, 1]", fraction=fraction)
    check_range("[0, 1)", discount=discount)
    check_range("[1, inf)", num_steps=num_steps)
    return fraction / (1.0 - (1.0 - fraction) * discount**num_steps)


@dataclass(frozen=True)
class TabularBackup:
    """A backup of n steps: the table becomes ``near + far @ table``.

    Attributes:
        near: What the n states reached contribute, shape (N, F).
        far: Discounted probabilities of the state after n steps, from row to column, shape (N, N).
    """

    near: Tensor
    far: Tensor

    @classmethod
    def of_steps(
        cls, features: Tensor, first: Tensor, rest: Tensor, discount: float, num_steps: int = 1
    ) -> "TabularBackup":
        """Sum the discounted features of n arrivals, and bootstrap from the state after them.

        With rewards as features the table is that of values; with ``1 - discount`` times the identity it is that of
        occupancies, the states arrived at.

        Args:
            features: Features of the state arrived at, shape (N, F).
            first: Transition probabilities of the first step, from row to column, shape (N, N). The row of a terminal
                state is zero.
            rest: Those of the later steps: of the modelled policy in a backup on policy or expanded in a model, of the
                policy that made the data in one of n steps of the data.
            discount: Discount per step, in [0, 1).
            num_steps: Steps n, at least 1.

        Raises:
            UserError: If a number is out of its range.
            ValueError: If the shapes do not fit.
        """
        check_range("[0, 1)", discount=discount)
        check_range("[1, inf)", num_steps=num_steps)
        check_same_shape(first=first, rest=rest)
        check_shape("first", first, (len(features), len(features)))
        reached, near = first, first @ features
        for step in range(1, num_steps):
            reached = reached @ rest
            near = near + discount**step * reached @ features
        return cls(near, discount**num_steps * reached)

    def with_strays(self, fraction: float) -> "TabularBackup":
        """The same backup with an error: a fraction of the probability goes to one more state, outside the chain.

        Args:
            fraction: Fraction, in [0, 1].

        Raises:
            UserError: If it is out of its range.
        """
        check_range("[0, 1]", fraction=fraction)
        outside = torch.full_like(self.near[:, :1], fraction)
        return TabularBackup(torch.cat([(1.0 - fraction) * self.near, outside], 1), (1.0 - fraction) * self.far)

    def fixed_point(self, bias: float = 0.0) -> Tensor:
        """The table that a backup leaves as it is, shape (N, F).

        Args:
            bias: Constant that each backup adds to every entry.
        """
        system = torch.eye(len(self.far), dtype=self.far.dtype, device=self.far.device) - self.far
        return torch.linalg.solve(system, self.near + bias)

    def repeat(self, errors: Tensor) -> Tensor:
        """Tables after 0, 1, ..., J backups, beginning at zero, shape (J + 1, *batch, N, F).

        Args:
            errors: What is added in each backup, shape (J, *batch, N, F) or one that expands to it with the N and F of
                the table.
        """
        table = torch.zeros(*errors.shape[1:-2], *self.near.shape, dtype=self.near.dtype, device=self.near.device)
        tables = [table]
        for error in errors:
            table = self.near + self.far @ table + error
            tables.append(table)
        return torch.stack(tables)


@dataclass(frozen=True)
class CombinationLock:
    """A row of states, each with one right action, which leads to the next; any other leads back to the first state.

    The state behind the last one is terminal: the lock is open. Random actions hardly ever open it, but from random
    states they show what each action does.

    Args:
        length: States from the first to the open lock, that is steps of the right policy, at least 1.
        slip: Probability that the right action leads back to the first state all the same, in [0, 1].

    Raises:
        UserError: If a number is out of its range.
    """

    length: int = 64
    slip: float = 0.0

    def __post_init__(self) -> None:
        check_range("[1, inf)", length=self.length)
        check_range("[0, 1]", slip=self.slip)

    @property
    def num_states(self) -> int:
        """With the terminal one."""
        return self.length + 1

    def opened(self) -> Tensor:
        """Reward of the state arrived at, 1 for the open lock, float64, shape (N, 1)."""
        reward = torch.zeros(self.num_states, 1, dtype=torch.float64)
        reward[-1] = 1.0
        return reward

    def kernel(self, right: float) -> Tensor:
        """Transition probabilities from row to column, float64, shape (N, N); the row of the terminal state is zero.

        Args:
            right: Probability of the right action in each state, in [0, 1].

        Raises:
            UserError: If it is out of its range.
        """
        check_range("[0, 1]", right=right)
        moves = right * (1.0 - self.slip)
        kernel = torch.diag(torch.full((self.length,), moves, dtype=torch.float64), 1)
        kernel[:-1, 0] += 1.0 - moves
        return kernel

    def step(self, state: Tensor, right: Tensor, uniform: Tensor) -> Tensor:
        """States, int64, shape (B,), after one step.

        Args:
            state: States that are not terminal, int64, shape (B,).
            right: Whether the action is the right one, boolean, shape (B,).
            uniform: Uniform noise in [0, 1), shape (B,).
        """
        return torch.where(right & (uniform >= self.slip), state + 1, 0)


def counted_kernel(state: Tensor, arrival: Tensor, num_states: int) -> Tensor:
    """Transition probabilities as counted, from row to column, float64, shape (N, N); rows never seen are zero.

    Args:
        state: States, int64, shape (B,).
        arrival: States one step later, int64, shape (B,).
        num_states: Number N of states.

    Raises:
        ValueError: If the shapes differ.
    """
    check_same_shape(state=state, arrival=arrival)
    counts = torch.bincount(state * num_states + arrival, minlength=num_states**2).double()
    counts = counts.reshape(num_states, num_states)
    return counts / counts.sum(1, keepdim=True).clamp_min(1.0)
