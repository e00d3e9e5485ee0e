"""Meaning of a critic's outputs: a value, or the distribution of the return."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.objectives import (
    categorical_loss,
    critic_loss,
    projected_probabilities,
    quantile_loss,
    return_flow_loss,
    transported,
)
from flowmatch_rl.shapes import check_shape


@dataclass(frozen=True)
class ValueHead(abc.ABC):
    """Computes values from the O outputs of a critic, and compares distributions of the return.

    Evaluation of many actions uses ``read`` and ``hidden_gradient``, which include the last layer: values that are
    linear in it cost no more than a single output.
    """

    is_scalable: ClassVar[bool] = False
    """Whether a multiple of the outputs stands for that multiple of the return."""

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """Outputs O of the critic."""

    @property
    @abc.abstractmethod
    def num_uniforms(self) -> int:
        """Random numbers U per transition that the loss takes."""

    @abc.abstractmethod
    def values(self, outputs: Tensor) -> Tensor:
        """Values of the outputs.

        Args:
            outputs: Outputs of critics, shape (*batch, O).

        Returns:
            Values in units of the return, shape (*batch).
        """

    @abc.abstractmethod
    def read(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one critic from its last hidden layer.

        Args:
            hidden: Last hidden layer, shape (R, H).
            weight: Weight of the last layer, shape (H, O).
            bias: Its bias, shape (1, O).

        Returns:
            Values in units of the return, shape (R, 1), and what ``hidden_gradient`` needs.
        """

    @abc.abstractmethod
    def hidden_gradient(self, kept: Tensor, weight: Tensor, member_weight: Tensor) -> Tensor:
        """Gradient of ``member_weight`` times the values with respect to the last hidden layer.

        Args:
            kept: State that ``read`` returned.
            weight: Weight of the last layer, shape (H, O).
            member_weight: Weight of the member at each row, shape (R, 1).

        Returns:
            Gradient, shape (R, H).
        """

    @abc.abstractmethod
    def distribution(self, outputs: Tensor) -> Tensor:
        """Representation of the distribution of the return, in which values are linear.

        Args:
            outputs: Outputs of critics, shape (*batch, O).

        Returns:
            The distribution, shape (*batch, N): probabilities or quantiles, or the value itself.
        """

    @abc.abstractmethod
    def loss(self, outputs: Tensor, next_distribution: Tensor, shift: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        """Distance of the members of an ensemble from the distribution of ``shift + scale Z``.

        Args:
            outputs: Outputs of the members, shape (M, B, O).
            next_distribution: Distribution of Z, detached, shape (B, N), as ``distribution`` returns it.
            shift: Units of the return, shape (B,).
            scale: At least 0, shape (B,). Where it is 0 the target is ``shift`` for any distribution.
            uniform: Noise, uniform on [0, 1), shape (B, U).

        Returns:
            Loss per sample, mean over the members, shape (B,).

        Raises:
            ValueError: If the shapes do not fit.
        """


@dataclass(frozen=True)
class ScalarHead(ValueHead):
    """One output, the value; squared or Huber error.

    Args:
        huber_delta: Error above which the loss is linear, units of the outputs (of the return, unless values are
            normalised), positive; squared error if None.

    Raises:
        UserError: If ``huber_delta`` is not positive.
    """

    is_scalable = True

    huber_delta: float | None = None

    def __post_init__(self) -> None:
        check_range("(0, inf)", huber_delta=self.huber_delta)

    @property
    def num_outputs(self) -> int:
        """1."""
        return 1

    @property
    def num_uniforms(self) -> int:
        """0."""
        return 0

    def values(self, outputs: Tensor) -> Tensor:
        """The output."""
        return outputs.squeeze(-1)

    def read(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one critic from its last hidden layer."""
        return torch.addmm(bias, hidden, weight), weight

    def hidden_gradient(self, kept: Tensor, weight: Tensor, member_weight: Tensor) -> Tensor:
        """Gradient of ``member_weight`` times the values with respect to the last hidden layer."""
        return member_weight * weight.squeeze(-1)

    def distribution(self, outputs: Tensor) -> Tensor:
        """The value itself."""
        return outputs

    def loss(self, outputs: Tensor, next_distribution: Tensor, shift: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        """Squared or Huber error."""
        target = shift + scale * _where_it_counts(next_distribution, scale).squeeze(-1)
        return critic_loss(outputs.squeeze(-1), target, self.huber_delta)


@dataclass(frozen=True)
class CategoricalHead(ValueHead):
    """Logits of evenly spaced atoms; cross-entropy against the projected target.

    Returns outside the support count as its bounds: choose it as wide as the returns.

    Args:
        num_atoms: Atoms O, at least 2.
        v_min: Smallest atom, units of the return.
        v_max: Largest atom.

    Raises:
        UserError: If there are fewer than two atoms, or the bounds are not finite and in order.

    Reference:
        Bellemare et al., arXiv:1707.06887.
    """

    num_atoms: int = 101
    v_min: float = -100.0
    v_max: float = 100.0

    def __post_init__(self) -> None:
        check_range("[2, inf)", num_atoms=self.num_atoms)
        if not -math.inf < self.v_min < self.v_max < math.inf:
            raise UserError(f"expected finite v_min < v_max, got {self.v_min} and {self.v_max}")

    @property
    def num_outputs(self) -> int:
        """``num_atoms``."""
        return self.num_atoms

    @property
    def num_uniforms(self) -> int:
        """0."""
        return 0

    def values(self, outputs: Tensor) -> Tensor:
        """Means of the distributions."""
        # A sum, not a matrix product, which autocast would round.
        return (outputs.softmax(-1) * self._atoms(outputs)).sum(-1)

    def read(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one critic from its last hidden layer."""
        probabilities = torch.addmm(bias, hidden, weight).softmax(-1)
        atoms = self._atoms(probabilities)
        values = (probabilities @ atoms)[:, None]
        return values, probabilities * (atoms - values)

    def hidden_gradient(self, kept: Tensor, weight: Tensor, member_weight: Tensor) -> Tensor:
        """Gradient of ``member_weight`` times the values with respect to the last hidden layer."""
        return (member_weight * kept) @ weight.T

    def distribution(self, outputs: Tensor) -> Tensor:
        """Probabilities of the atoms."""
        return outputs.softmax(-1)

    def loss(self, outputs: Tensor, next_distribution: Tensor, shift: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        """Cross-entropy."""
        probabilities = _where_it_counts(next_distribution, scale)
        return categorical_loss(outputs, projected_probabilities(probabilities, shift, scale, self.v_min, self.v_max))

    def _atoms(self, like: Tensor) -> Tensor:
        return torch.linspace(self.v_min, self.v_max, self.num_atoms, device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class QuantileHead(ValueHead):
    """Quantiles at the midpoints of equal strata; quantile Huber loss.

    Args:
        num_quantiles: Quantiles O, at least 1.
        huber_delta: Error up to which the loss is quadratic, units of the outputs (of the return, unless values are
            normalised), at least 0.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Dabney et al., arXiv:1710.10044.
    """

    is_scalable = True

    num_quantiles: int = 32
    huber_delta: float = 1.0

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_quantiles=self.num_quantiles)
        check_range("[0, inf)", huber_delta=self.huber_delta)

    @property
    def num_outputs(self) -> int:
        """``num_quantiles``."""
        return self.num_quantiles

    @property
    def num_uniforms(self) -> int:
        """0."""
        return 0

    def values(self, outputs: Tensor) -> Tensor:
        """Means of the quantiles."""
        return outputs.mean(-1)

    def read(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one critic from its last hidden layer."""
        mean_weight = weight.mean(-1, keepdim=True)
        return torch.addmm(bias.mean(-1, keepdim=True), hidden, mean_weight), mean_weight

    def hidden_gradient(self, kept: Tensor, weight: Tensor, member_weight: Tensor) -> Tensor:
        """Gradient of ``member_weight`` times the values with respect to the last hidden layer."""
        return member_weight * kept.squeeze(-1)

    def distribution(self, outputs: Tensor) -> Tensor:
        """The quantiles."""
        return outputs

    def loss(self, outputs: Tensor, next_distribution: Tensor, shift: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        """Quantile Huber loss."""
        target = shift[:, None] + scale[:, None] * _where_it_counts(next_distribution, scale)
        return quantile_loss(outputs, target, self.huber_delta)


@dataclass(frozen=True)
class FlowHead(ValueHead):
    """The mean, and a flow from Gaussian noise to the deviation of the return from it, conditioned on state and action.

    The first output is the mean, which learns by the squared error of ``ScalarHead`` and is the value: values cost no
    evaluation of the flow. The other outputs are the flow: tables of the posterior mean of the deviation, which learn
    by flow matching. Targets are points of the next return that the target network's flow takes quantiles of the noise
    to, moved by a constant so that their mean is the value. The papers evaluate a network of return, time, state and
    action instead; here return and time enter after the last layer.

    Args:
        spread: Standard deviation of the noise, units of the return, positive. Distributions of a standard deviation
            from a twentieth to twice of it are resolved; deviations beyond four times of it count as that.
        num_points: Points N of a target, at least 2.
        num_steps: Steps of the midpoint method, at least 1.
        num_knots: Knots of each table, at least 2.

    Raises:
        UserError: If a number is out of its range.

    Reference:
        Dong et al., arXiv:2510.07650 (Value Flows), for flows of returns; Agrawalla et al., arXiv:2509.06863 (floq).
    """

    spread: float = 10.0
    num_points: int = 16
    num_steps: int = 4
    num_knots: int = 17

    _WIDTH: ClassVar = 4.0
    """Place of the last knot over the spread."""

    def __post_init__(self) -> None:
        check_range("(0, inf)", spread=self.spread)
        check_range("[2, inf)", num_points=self.num_points, num_knots=self.num_knots)
        check_range("[1, inf)", num_steps=self.num_steps)

    @property
    def num_outputs(self) -> int:
        """The mean, and the tables."""
        return 1 + self._num_tables * self.num_knots

    @property
    def num_uniforms(self) -> int:
        """One for each table and point."""
        return self._num_tables * self.num_points

    def values(self, outputs: Tensor) -> Tensor:
        """The first output."""
        return outputs[..., 0]

    def read(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one critic from its last hidden layer."""
        mean_weight = weight[:, :1]
        return torch.addmm(bias[:, :1], hidden, mean_weight), mean_weight

    def hidden_gradient(self, kept: Tensor, weight: Tensor, member_weight: Tensor) -> Tensor:
        """Gradient of ``member_weight`` times the values with respect to the last hidden layer."""
        return member_weight * kept.squeeze(-1)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Samples of the return.

        Args:
            outputs: Outputs of critics, shape (*batch, O).
            noise: Standard normal, shape (*batch, N).

        Returns:
            Returns, shape (*batch, N).
        """
        deviation = transported(self._tables(outputs), self.spread * noise, self._WIDTH * self.spread)
        return self.values(outputs)[..., None] + deviation

    def distribution(self, outputs: Tensor) -> Tensor:
        """Points of the flow that begin at quantiles of the noise, moved so that their mean is the value."""
        levels = torch.arange(self.num_points, device=outputs.device, dtype=outputs.dtype) + 0.5
        quantiles = torch.special.ndtri(levels / self.num_points)
        noise = quantiles / quantiles.square().mean().sqrt()  # of variance 1, which midpoints of strata fall short of
        points = self.sample(outputs, noise.expand(*outputs.shape[:-1], -1))
        # Otherwise errors of the flow would accumulate in the values from backup to backup.
        return points + (self.values(outputs) - points.mean(-1))[..., None]

    def loss(self, outputs: Tensor, next_distribution: Tensor, shift: Tensor, scale: Tensor, uniform: Tensor) -> Tensor:
        """Squared error of the mean, and of the posterior mean of the deviation at the times of the flow."""
        check_shape("uniform", uniform, (len(shift), self.num_uniforms))
        target = shift[:, None] + scale[:, None] * _where_it_counts(next_distribution, scale)
        values, width = self.values(outputs), self._WIDTH * self.spread
        deviation = (target - values.detach()[..., None]).clamp(-width, width)
        tiny = torch.finfo(uniform.dtype).eps
        noise = self.spread * torch.special.ndtri(uniform.clamp(tiny, 1.0 - tiny))
        noise = noise.view(-1, self._num_tables, self.num_points)
        return critic_loss(values, target.mean(-1)) + return_flow_loss(self._tables(outputs), deviation, noise, width)

    @property
    def _num_tables(self) -> int:
        return 2 * self.num_steps - 1

    def _tables(self, outputs: Tensor) -> Tensor:
        """Shape (*batch, 2 n - 1, G), units of the return."""
        return outputs[..., 1:].unflatten(-1, (self._num_tables, self.num_knots))


def _where_it_counts(distribution: Tensor, scale: Tensor) -> Tensor:
    """The distribution, replaced by a finite one where the scale is 0: zero times infinity is not a number."""
    return distribution.masked_fill((scale == 0.0)[:, None], 1.0 / distribution.shape[-1])
