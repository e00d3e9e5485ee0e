"""Finite Markov chains observed as points in the plane, whose discounted future is known exactly."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.paths import GaussianMixture
from flowmatch_rl.shapes import check_shape
from flowmatch_rl.testbeds.processes.planar import PlanarProcess
from flowmatch_rl.types import Policy

MOVE_THRESHOLD = 1.0 / 3.0
"""Actions above it move one cell on, actions below its negative one cell back, those between stay."""


def discounted_occupancy(first: Tensor, kernel: Tensor, discount: float) -> Tensor:
    """Discounted distribution ``(1 - discount) first (I - discount kernel)^(-1)`` of the future cells of a chain.

    Args:
        first: Distribution of the cell at time 1, shape (*batch, N).
        kernel: Transition probabilities from row to column, shape (N, N) or (*batch, N, N).
        discount: Discount per step, in [0, 1).

    Returns:
        Probabilities, shape (*batch, N). The cell at time 0 is not counted.

    Raises:
        UserError: If the discount is out of its range.
    """
    check_range("[0, 1)", discount=discount)
    system = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device) - discount * kernel
    if kernel.dim() == 2:
        visits = torch.linalg.solve(system, first.reshape(-1, len(kernel)), left=False).reshape(first.shape)
    else:
        visits = torch.linalg.solve(system, first[..., None, :], left=False).squeeze(-2)
    # Rounding may leave a cell that is never reached a little below zero.
    return (1.0 - discount) * visits.clamp_min(0.0)


@dataclass(frozen=True)
class CellProcess(PlanarProcess):
    """A walk on N cells of the plane, observed as the centre of the cell plus a little normal noise.

    An action, one number, asks to move one cell on (above 1/3), one back (below -1/3) or to stay. With probability
    ``slip`` the move is one of the three at random instead. The observed point is decoded to the cell it lies in;
    the closed forms hold up to the probability, at most 6e-7, that a point lies outside its own cell.

    Args:
        num_states: Number N of cells, at least 3.
        jitter: Standard deviation of the observed point around its cell's centre, in units of the plane, positive and
            at most a fifth of the distance from a centre to the edge of its cell.
        slip: Probability that the move is random, in [0, 1].

    Raises:
        UserError: If a number is out of its range.
    """

    num_states: int = 12
    jitter: float = 0.05
    slip: float = 0.1

    def __post_init__(self) -> None:
        check_range("[3, inf)", num_states=self.num_states)
        check_range("[0, 1]", slip=self.slip)
        if not 0.0 < self.jitter <= self.cell_radius / 5.0:
            raise UserError(
                f"jitter must be positive and at most {self.cell_radius / 5.0:.4g}, a fifth of the distance from a "
                f"centre to the edge of its cell, got {self.jitter}"
            )

    @property
    @abc.abstractmethod
    def cell_radius(self) -> float:
        """Distance from the centre of a cell to its edge, in units of the plane."""

    @abc.abstractmethod
    def centres(self) -> Tensor:
        """Centres of the cells, float64, shape (N, 2)."""

    @abc.abstractmethod
    def cell(self, state: Tensor) -> Tensor:
        """Cells, int64, shape (*batch), that states of shape (*batch, 2) lie in."""

    @abc.abstractmethod
    def neighbour(self, cell: Tensor, move: Tensor) -> Tensor:
        """Cells, int64, that moves by -1, 0 or 1 lead to."""

    @abc.abstractmethod
    def terminal_cells(self) -> Tensor:
        """Whether each cell is terminal, boolean, shape (N,)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Position in the plane."""
        return ("x", "y")

    @property
    def action_dim(self) -> int:
        """One number, on or back."""
        return 1

    @property
    def noise_dim(self) -> int:
        """Two for the jitter and one for the move."""
        return 3

    def walls(self) -> Tensor:
        """There are none, shape (0, 4)."""
        return torch.zeros(0, 4, dtype=torch.float64)

    def start(self, noise: Tensor) -> Tensor:
        """Uniform over the cells that are not terminal."""
        check_shape("noise", noise, (*noise.shape[:-1], self.noise_dim))
        cells = (~self.terminal_cells()).nonzero().squeeze(-1).to(noise.device)
        part = (torch.special.ndtr(noise[..., 2]) * len(cells)).long().clamp_max(len(cells) - 1)
        return self._observe(cells[part], noise)

    def step(self, state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One step, see the class."""
        check_shape("state", state, (*state.shape[:-1], 2))
        check_shape("action", action, (*state.shape[:-1], 1))
        check_shape("noise", noise, (*state.shape[:-1], self.noise_dim))
        uniform = torch.special.ndtr(noise[..., 2])
        random_move = (uniform > self.slip / 3.0).long() + (uniform > self.slip * 2.0 / 3.0).long() - 1
        cell = self.neighbour(self.cell(state), torch.where(uniform < self.slip, random_move, _wanted_move(action)))
        return self._observe(cell, noise), self.terminal_cells().to(cell.device)[cell]

    def transition_matrix(self, actions: Tensor) -> Tensor:
        """Transition probabilities from row to column; a terminal cell is never left.

        Args:
            actions: Action taken in each cell, shape (*batch, N, 1).

        Returns:
            Matrix, float64, shape (*batch, N, N).
        """
        check_shape("actions", actions, (*actions.shape[:-2], self.num_states, 1))
        cells = torch.arange(self.num_states, device=actions.device)
        wanted = _wanted_move(actions)
        matrix = (1.0 - self.slip) * self._one_hot(self.neighbour(cells, wanted))
        for move in (-1, 0, 1):
            matrix = matrix + self.slip / 3.0 * self._one_hot(self.neighbour(cells, torch.full_like(cells, move)))
        stay = self._one_hot(cells)
        return torch.where(self.terminal_cells().to(cells.device)[:, None], stay, matrix)

    def policy_matrix(self, policy: Policy, embedding: Tensor | None = None) -> Tensor:
        """Transition probabilities under a policy, float64, shape (N, N), with an embedding (*batch, N, N).

        Args:
            policy: A deterministic policy that takes one action throughout a cell.
            embedding: Member of a family, shape (*batch, Z), or None.
        """
        centres = self.centres()
        if embedding is None:
            return self.transition_matrix(policy.act(centres))
        centres = centres.to(embedding.device).expand(*embedding.shape[:-1], -1, -1)
        return self.transition_matrix(policy.act(centres, embedding[..., None, :].expand(*centres.shape[:-1], -1)))

    def occupancy(
        self,
        state: Tensor,
        action: Tensor,
        policy: Policy,
        discount: float,
        embedding: Tensor | None = None,
        include_current: bool = False,
    ) -> Tensor:
        """Exact discounted distribution of the future cells, ``(1 - g) P (I - g K)^(-1)``.

        Args:
            state: States at time 0, not terminal, shape (*batch, 2).
            action: Actions at time 0, shape (*batch, 1).
            policy: Takes the later actions; deterministic, and takes one action throughout a cell.
            discount: Discount g per step, in [0, 1).
            embedding: Members of the family that act, shape (*batch, Z), or None.
            include_current: Whether the sum starts at time 0, so that the current cell has weight 1 - g.

        Returns:
            Probabilities of the cells, float64, shape (*batch, N).

        Raises:
            UserError: If the discount is out of its range.
        """
        cell = self.cell(state)
        first = self.transition_matrix(action[..., None, :].expand(*cell.shape, self.num_states, 1))
        first = first.gather(-2, cell[..., None, None].expand(*cell.shape, 1, self.num_states)).squeeze(-2)
        kernel = self.policy_matrix(policy, embedding).to(first.device)
        future = discounted_occupancy(first, kernel, discount)
        return (1.0 - discount) * self._one_hot(cell) + discount * future if include_current else future

    def mixture(self, probabilities: Tensor) -> GaussianMixture:
        """Distribution of the observed point, one component per cell of positive probability.

        Args:
            probabilities: Probabilities of the cells, shape (N,).

        Returns:
            The mixture, in the precision of the probabilities.
        """
        check_shape("probabilities", probabilities, (self.num_states,))
        kept = probabilities > 0.0
        weights = probabilities[kept]
        return GaussianMixture(weights, self.centres().to(weights)[kept], torch.full_like(weights, self.jitter))

    def _observe(self, cell: Tensor, noise: Tensor) -> Tensor:
        return self.centres().to(noise)[cell] + self.jitter * noise[..., :2]

    def _one_hot(self, cell: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(cell, self.num_states).double()


def _wanted_move(action: Tensor) -> Tensor:
    """Moves -1, 0 or 1, int64, shape (*batch), that actions of shape (*batch, 1) ask for."""
    action = action.squeeze(-1)
    return (action > MOVE_THRESHOLD).long() - (action < -MOVE_THRESHOLD).long()
