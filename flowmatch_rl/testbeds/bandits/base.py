"""Bandits: one state, an action in a box, and an action value known in closed form."""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.shapes import check_same_shape, check_shape
from flowmatch_rl.testbeds.bandits.quadrature import num_panels, panel_nodes, quantiles

MOST_PRODUCT_PANELS = 4096
MOST_PLANAR_PANELS = 512
POINTS_AT_ONCE = 2**19
"""Actions whose values are held in memory at a time."""


@dataclass(frozen=True)
class Bandit(abc.ABC):
    """One state and a known value Q of actions in [-1, 1]^D.

    Its Boltzmann distribution at a temperature, with density proportional to ``exp(Q / temperature)`` on the box, is
    what a policy of maximum entropy must sample. Quadrature gives its samples, its density and its means to about 1e-9.
    """

    @property
    @abc.abstractmethod
    def action_dim(self) -> int:
        """Dimension D of the action."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Short name, for titles and run names."""

    @property
    @abc.abstractmethod
    def length(self) -> float:
        """Standard deviation of the narrowest feature of ``exp(Q)``, in units of the action."""

    @property
    @abc.abstractmethod
    def num_modes(self) -> int:
        """Parts J that the distribution falls into; 1 where it is in one piece."""

    @abc.abstractmethod
    def value_and_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Action value and its gradient.

        Args:
            actions: Actions, shape (..., D).

        Returns:
            Q in units of the return, shape (...), and its gradient with respect to the action, shape (..., D).

        Raises:
            ValueError: If the actions have another dimension.
        """

    @abc.abstractmethod
    def mode_of(self, actions: Tensor) -> Tensor:
        """Mode that each action belongs to.

        Args:
            actions: Actions, shape (..., D).

        Returns:
            Number of the mode in 0, ..., J - 1, integer, shape (...).
        """

    @abc.abstractmethod
    def sample(self, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """Exact samples of the Boltzmann distribution, by inverse distribution functions.

        Args:
            uniform: Uniform noise in [0, 1), shape (N, D).
            temperature: Temperature, in units of the return, positive.

        Returns:
            Independent actions, shape (N, D).

        Raises:
            ValueError: If the noise has another shape, or the temperature is too low to be resolved.
        """

    @abc.abstractmethod
    def log_normaliser(self, temperature: float = 1.0) -> float:
        """Logarithm of the integral of ``exp(Q / temperature)`` over the box, nats.

        Args:
            temperature: Temperature, in units of the return, positive.

        Raises:
            ValueError: If the temperature is too low to be resolved.
        """

    @abc.abstractmethod
    def grid_mean(self, actions: Tensor, log_weight: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
        """Means of functions of single coordinates under the distribution on a grid, tilted coordinate by coordinate.

        The distribution gives the grid point with coordinates ``actions[b, 0, i], actions[b, 1, j], ...`` a probability
        proportional to ``exp(Q / temperature + log_weight[b, 0, i] + log_weight[b, 1, j] + ...)``. With the weights of
        a quadrature rule among the weights these are integrals.

        Args:
            actions: Coordinates of B grids, shape (B, D, G).
            log_weight: Weight of each coordinate, nats, shape (B, D, G).
            values: Values of the functions, shape (B, D, G).
            temperature: Temperature, in units of the return, positive.

        Returns:
            Mean of the function of each coordinate, shape (B, D).

        Raises:
            ValueError: If the shapes differ.
        """

    @abc.abstractmethod
    def plane_log_prob(self, points: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-density in nats of the first two entries of the action, for figures.

        Args:
            points: First two entries, in [-1, 1], shape (..., 2).
            temperature: Temperature, in units of the return, positive.

        Returns:
            Log-density, shape (...).

        Raises:
            ValueError: If the action has one entry only.
        """

    def log_prob(self, actions: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-density of the Boltzmann distribution in nats.

        Args:
            actions: Actions in the box, shape (..., D).
            temperature: Temperature, in units of the return, positive.

        Returns:
            Log-density, shape (...); minus infinity outside the box.
        """
        value, _ = self.value_and_gradient(actions)
        log_density = value / temperature - self.log_normaliser(temperature)
        return log_density.masked_fill((actions.abs() > 1.0).any(-1), -torch.inf)

    def mode_shares(self, actions: Tensor) -> Tensor:
        """Fraction of the actions in each part, shape (J,), for actions of shape (N, D)."""
        counts = torch.bincount(self.mode_of(actions), minlength=self.num_modes)
        return counts.to(actions.dtype) / len(actions)

    def check_actions(self, name: str, x: Tensor) -> None:
        """Raise unless the last dimension of a tensor is that of the action.

        Args:
            name: Name to use in the error.
            x: Tensor to check.

        Raises:
            ValueError: If it is another one.
        """
        if x.dim() < 1 or x.shape[-1] != self.action_dim:
            raise ValueError(f"expected {name} of shape (..., {self.action_dim}), got {tuple(x.shape)}")


@dataclass(frozen=True)
class ProductBandit(Bandit):
    """A bandit whose value is a sum of one function of each coordinate, so that its distribution is a product.

    Args:
        dimensions: Dimension D of the action, at least 1.
    """

    dimensions: int

    @property
    def action_dim(self) -> int:
        """Dimension D of the action."""
        return self.dimensions

    @abc.abstractmethod
    def coordinate_value(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Value that a coordinate contributes and its derivative, both of the shape of the coordinates ``a``."""

    def value_and_gradient(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Action value (...) and its gradient (..., D)."""
        self.check_actions("actions", actions)
        value, slope = self.coordinate_value(actions)
        return value.sum(-1), slope

    def sample(self, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """Exact samples of the Boltzmann distribution, shape (N, D)."""
        check_shape("uniform", uniform, (len(uniform), self.action_dim))
        log_density, _ = self._table(temperature, uniform.device)
        return quantiles(log_density[None], uniform.double().flatten()).reshape(uniform.shape).to(uniform)

    def log_normaliser(self, temperature: float = 1.0) -> float:
        """Logarithm of the integral of ``exp(Q / temperature)`` over the box, nats."""
        log_density, weights = self._table(temperature)
        return self.action_dim * float((log_density + weights.log()).logsumexp((0, 1)))

    def plane_log_prob(self, points: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-density in nats of the first two entries of the action, shape (...)."""
        if self.action_dim < 2:
            raise ValueError(f"expected a bandit with at least two actions, got {self}")
        value = self.coordinate_value(points)[0].sum(-1) / temperature
        return value - 2.0 / self.action_dim * self.log_normaliser(temperature)

    def grid_mean(self, actions: Tensor, log_weight: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
        """Means of functions of single coordinates under the distribution on a grid, shape (B, D)."""
        check_same_shape(actions=actions, log_weight=log_weight, values=values)
        log_density = self.coordinate_value(actions)[0] / temperature + log_weight
        return (torch.softmax(log_density, -1) * values).sum(-1)

    def _table(self, temperature: float, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Log-density of a coordinate at the nodes of panels, and the weights of the nodes."""
        panels = num_panels(self.length, temperature, MOST_PRODUCT_PANELS, type(self).__name__)
        nodes, weights = panel_nodes(panels, device)
        return self.coordinate_value(nodes)[0] / temperature, weights


@dataclass(frozen=True)
class PlanarBandit(Bandit):
    """A bandit with two actions."""

    @property
    def action_dim(self) -> int:
        """Two."""
        return 2

    def sample(self, uniform: Tensor, temperature: float = 1.0) -> Tensor:
        """Exact samples of the Boltzmann distribution, shape (N, 2): the first entry, then the second given it."""
        check_shape("uniform", uniform, (len(uniform), 2))
        nodes, _ = self._nodes(temperature, uniform.device)
        level, second_level = uniform.double().unbind(-1)
        first = quantiles(self._first_density(nodes.flatten(), temperature).reshape(1, *nodes.shape), level)
        size = max(1, POINTS_AT_ONCE // nodes.numel())
        second = [
            quantiles(self._values(a, nodes.flatten(), temperature).reshape(len(a), *nodes.shape), levels)
            for a, levels in zip(first.split(size), second_level.split(size), strict=True)
        ]
        return torch.stack([first, torch.cat(second)], dim=-1).to(uniform)

    def log_normaliser(self, temperature: float = 1.0) -> float:
        """Logarithm of the integral of ``exp(Q / temperature)`` over the box, nats."""
        nodes, weights = (x.flatten() for x in self._nodes(temperature))
        return float((self._first_density(nodes, temperature) + weights.log()).logsumexp(0))

    def plane_log_prob(self, points: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-density in nats of the action, shape (...)."""
        return self.log_prob(points, temperature)

    def grid_mean(self, actions: Tensor, log_weight: Tensor, values: Tensor, temperature: float = 1.0) -> Tensor:
        """Means of functions of single coordinates under the distribution on a grid, shape (B, 2)."""
        check_same_shape(actions=actions, log_weight=log_weight, values=values)
        means = []
        for a, weight, value in zip(actions, log_weight, values, strict=True):
            joint = self._values(a[0], a[1], temperature) + weight[0, :, None] + weight[1]
            joint = torch.softmax(joint.flatten(), 0).reshape(joint.shape)
            means.append(torch.stack([joint.sum(1) @ value[0], joint.sum(0) @ value[1]]))
        return torch.stack(means)

    def _first_density(self, first: Tensor, temperature: float) -> Tensor:
        """Logarithm of the integral of ``exp(Q / temperature)`` over the second entry, shape of ``first``, (N,)."""
        nodes, weights = (x.flatten() for x in self._nodes(temperature, first.device))
        pieces = first.split(max(1, POINTS_AT_ONCE // len(nodes)))
        return torch.cat([(self._values(a, nodes, temperature) + weights.log()).logsumexp(1) for a in pieces])

    def _nodes(self, temperature: float, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Nodes of one coordinate and their weights, in panels."""
        return panel_nodes(num_panels(self.length, temperature, MOST_PLANAR_PANELS, type(self).__name__), device)

    def _values(self, first: Tensor, second: Tensor, temperature: float) -> Tensor:
        """``Q / temperature`` on a grid, shape (N, M), of coordinates (N,) and (M,)."""
        return self.value_and_gradient(torch.cartesian_prod(first, second))[0].reshape(len(first), -1) / temperature
