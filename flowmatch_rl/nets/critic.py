"""An ensemble of action-value networks, evaluated as stacked matrix products."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import check_range
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.nets.layer_norm import EPSILON, Normalisation, normalised, normalised_gradient
from flowmatch_rl.nets.observations import ObservationFeatures
from flowmatch_rl.nets.value_heads import ScalarHead, ValueHead
from flowmatch_rl.objectives import ValueReduction


@dataclass(frozen=True)
class CriticArchitecture:
    """Configuration of an ensemble of critics with rectified linear units.

    Args:
        num_members: Members M, at least 1.
        hidden_dim: Width of every hidden layer.
        num_layers: Hidden layers, at least 1.
        layer_norm: Whether each hidden layer is normalised before its rectified linear units.
        head: Meaning of the outputs: a value, or the distribution of the return.
        observations: Units of the observation, and waves of it as further inputs.

    Raises:
        UserError: If a number is below 1.
    """

    num_members: int = 2
    hidden_dim: int = 256
    num_layers: int = 2
    layer_norm: bool = False
    head: ValueHead = ScalarHead()
    observations: ObservationFeatures = ObservationFeatures()

    def __post_init__(self) -> None:
        check_range("[1, inf)", num_members=self.num_members, hidden_dim=self.hidden_dim, num_layers=self.num_layers)

    def build(self, observation_dim: int, action_dim: int) -> "CriticEnsemble":
        """Build the ensemble for observations and actions of the given dimensions."""
        return CriticEnsemble(self, observation_dim, action_dim)


class _Evaluation(NamedTuple):
    """One member's pass over R = B N rows."""

    values: Tensor
    """Shape (B, N)."""
    kept: Tensor
    """What ``ValueHead.hidden_gradient`` needs."""
    hiddens: list[Tensor]
    """Hidden layers after their rectified linear units, each (R, H)."""
    normalisations: list[Normalisation]
    """One per hidden layer, or none."""


class CriticEnsemble(nn.Module):
    """Action values Q(s, a) of M networks.

    The first layer is a sum of a map of the observation and a map of the action, so that N actions per state share
    the map of the observation. Where few rows are evaluated all members are one batched product; see ``action_values``.
    Under autocast the last layer and the values keep the precision of the weights.

    Args:
        architecture: Configuration of the ensemble.
        observation_dim: Dimension S.
        action_dim: Dimension A.
    """

    def __init__(self, architecture: CriticArchitecture, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        members, width = architecture.num_members, architecture.hidden_dim
        self.features = architecture.observations.build(observation_dim)
        observation_dim = architecture.observations.dimension(observation_dim)
        joint = _orthogonal(members, observation_dim + action_dim, width)
        self.observation_weight = nn.Parameter(joint[:, :observation_dim].clone())  # (M, S, H)
        self.action_weight = nn.Parameter(joint[:, observation_dim:].clone())  # (M, A, H)
        self.input_bias = nn.Parameter(torch.zeros(members, 1, width))
        hidden = range(architecture.num_layers - 1)
        self.hidden_weights = nn.ParameterList(nn.Parameter(_orthogonal(members, width, width)) for _ in hidden)
        self.hidden_biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, width)) for _ in hidden)
        normalised_layers = range(architecture.num_layers if architecture.layer_norm else 0)
        self.norm_weights = nn.ParameterList(nn.Parameter(torch.ones(members, 1, width)) for _ in normalised_layers)
        self.norm_biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, width)) for _ in normalised_layers)
        self.head = architecture.head
        self._layer_norm = architecture.layer_norm
        self.value_weight = nn.Parameter(_orthogonal(members, width, self.head.num_outputs))  # (M, H, O)
        self.value_bias = nn.Parameter(torch.zeros(members, 1, self.head.num_outputs))

    @property
    def num_members(self) -> int:
        """Members M."""
        return self.input_bias.shape[0]

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Action values of all members.

        Args:
            observation: Shape (B, S).
            action: Shape (B, A).

        Returns:
            Values in units of the return, shape (M, B).

        Raises:
            ValueError: If the batches differ.
        """
        return self.head.values(self.outputs(observation, action))

    def outputs(self, observation: Tensor, action: Tensor, members: Tensor | None = None) -> Tensor:
        """Outputs of the networks, which the head turns into values or distributions.

        Args:
            observation: Shape (B, S).
            action: Shape (B, A).
            members: Indices of the members to evaluate, integer, shape (M',); all if None.

        Returns:
            Outputs, shape (M, B, O), or (M', B, O).

        Raises:
            ValueError: If the batches differ.
        """
        if observation.shape[:-1] != action.shape[:-1] or observation.dim() != 2:
            raise ValueError(f"expected (B, S) and (B, A), got {tuple(observation.shape)} and {tuple(action.shape)}")

        def of_members(parameter: Tensor) -> Tensor:
            return parameter if members is None else parameter[members]

        joint = torch.cat([of_members(self.observation_weight), of_members(self.action_weight)], dim=1)
        x = torch.cat([self.features(observation), action], dim=-1).expand(len(joint), -1, -1)
        h = self._activated(0, torch.baddbmm(of_members(self.input_bias), x, joint), of_members)
        layers = zip(self.hidden_weights, self.hidden_biases, strict=True)
        for layer, (weight, bias) in enumerate(layers, start=1):
            h = self._activated(layer, torch.baddbmm(of_members(bias), h, of_members(weight)), of_members)
        with _without_autocast(h):
            weight = of_members(self.value_weight)
            return torch.baddbmm(of_members(self.value_bias), h.to(weight.dtype), weight)

    @torch.no_grad()
    def action_values(self, observation: Tensor, actions: Tensor, reduction: ValueReduction = "min") -> Tensor:
        """Values of several actions per state, reduced over the members, without gradient to the weights.

        Args:
            observation: Shape (B, S).
            actions: Shape (B, N, A).
            reduction: Minimum or mean over the members.

        Returns:
            Values in units of the return, shape (B, N).

        Raises:
            ValueError: If the batches differ.
        """
        _check_particles(observation, actions)

        return map_in_chunks(partial(self._values, reduction), actions.shape[1], observation, actions)[0]

    @torch.no_grad()
    def action_values_and_gradients(
        self, observation: Tensor, actions: Tensor, reduction: ValueReduction = "min"
    ) -> tuple[Tensor, Tensor]:
        """Values of several actions per state and their gradients with respect to the actions.

        The backward pass is written out, since it needs no gradient of the weights.

        Args:
            observation: Shape (B, S).
            actions: Shape (B, N, A).
            reduction: Minimum or mean over the members; the gradient of a minimum is its lowest member's.

        Returns:
            Values in units of the return, shape (B, N), and gradients, shape (B, N, A).

        Raises:
            ValueError: If the batches differ.
        """
        _check_particles(observation, actions)

        values, gradients = map_in_chunks(
            partial(self._values_and_gradients, reduction), actions.shape[1], observation, actions
        )
        return values, gradients

    def compile_evaluation(self) -> None:
        """Compile the evaluation of many actions per state."""
        self._values = torch.compile(self._values)
        self._values_and_gradients = torch.compile(self._values_and_gradients)

    def _activated(self, layer: int, h: Tensor, of_members: Callable[[Tensor], Tensor]) -> Tensor:
        """Hidden layer (M, B, H) of some members after optional normalisation and rectified linear units."""
        if self._layer_norm:
            weight, bias = of_members(self.norm_weights[layer]), of_members(self.norm_biases[layer])
            h = torch.addcmul(bias, nn.functional.layer_norm(h, h.shape[-1:], eps=EPSILON), weight)
        return h.relu()

    def _values(self, reduction: ValueReduction, observation: Tensor, actions: Tensor) -> tuple[Tensor]:
        members = torch.stack([self._member(m, observation, actions).values for m in range(self.num_members)])
        return (members.amin(0) if reduction == "min" else members.mean(0),)

    def _values_and_gradients(
        self, reduction: ValueReduction, observation: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        evaluated = [self._member(m, observation, actions) for m in range(self.num_members)]
        members = torch.stack([evaluation.values for evaluation in evaluated])
        if reduction == "mean":
            reduced, weights = members.mean(0), torch.full_like(members, 1.0 / self.num_members)
        else:
            reduced, weights = (
                members.amin(0),
                nn.functional.one_hot(members.argmin(0), self.num_members).movedim(-1, 0),
            )
        parts = [self._member_gradient(m, evaluation, weights[m]) for m, evaluation in enumerate(evaluated)]
        return reduced, torch.stack(parts).sum(0, dtype=reduced.dtype)

    def _member(self, m: int, observation: Tensor, actions: Tensor) -> _Evaluation:
        """One member on all actions. Separate products are faster on many rows."""
        shared = self.features(observation) @ self.observation_weight[m] + self.input_bias[m]  # (B, H)
        normalisations: list[Normalisation] = []
        h = (actions @ self.action_weight[m]).add_(shared[:, None]).flatten(0, 1)
        h = self._member_activated(m, 0, h, normalisations)
        hiddens = [h]
        layers = zip(self.hidden_weights, self.hidden_biases, strict=True)
        for layer, (weight, bias) in enumerate(layers, start=1):
            h = self._member_activated(m, layer, torch.addmm(bias[m], h, weight[m]), normalisations)
            hiddens.append(h)
        with _without_autocast(h):
            weight = self.value_weight[m]
            values, kept = self.head.read(h.to(weight.dtype), weight, self.value_bias[m])
        return _Evaluation(values.view(actions.shape[:2]), kept, hiddens, normalisations)

    def _member_activated(self, m: int, layer: int, h: Tensor, normalisations: list[Normalisation]) -> Tensor:
        """Rectified linear units of one member's hidden layer (R, H), in place; appends its normalisation."""
        if self._layer_norm:
            h, kept = normalised(h, self.norm_weights[layer][m, 0], self.norm_biases[layer][m, 0])
            normalisations.append(kept)
        return h.relu_()

    def _member_gradient(self, m: int, evaluation: _Evaluation, weight: Tensor) -> Tensor:
        """Gradient (B, N, A) of ``weight`` times the values of one member."""
        hiddens, last = evaluation.hiddens, evaluation.hiddens[-1]
        gradient = self.head.hidden_gradient(
            evaluation.kept.to(last.dtype), self.value_weight[m].to(last.dtype), weight.to(last.dtype).reshape(-1, 1)
        )
        for layer in range(len(hiddens) - 1, 0, -1):
            gradient = self._through_activation(m, layer, gradient, evaluation) @ self.hidden_weights[layer - 1][m].T
        return (self._through_activation(m, 0, gradient, evaluation) @ self.action_weight[m].T).view(*weight.shape, -1)

    def _through_activation(self, m: int, layer: int, gradient: Tensor, evaluation: _Evaluation) -> Tensor:
        """Gradient (R, H) at the input of ``_member_activated``."""
        output = evaluation.hiddens[layer]
        gradient = _through_relu(gradient.to(output.dtype), output)
        if self._layer_norm:
            weight, bias = self.norm_weights[layer][m, 0], self.norm_biases[layer][m, 0]
            gradient = normalised_gradient(gradient, evaluation.normalisations[layer], weight, bias)
        return gradient


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which products of float32 tensors are not rounded."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """Gradient at the input of a rectified linear unit: one pass, without a mask in memory."""
    return torch.ops.aten.threshold_backward(gradient, output, 0)


def _orthogonal(members: int, rows: int, columns: int) -> Tensor:
    """One orthogonal matrix of gain sqrt(2) per member, shape (members, rows, columns)."""
    matrices = torch.empty(members, rows, columns)
    for matrix in matrices:
        nn.init.orthogonal_(matrix, gain=2.0**0.5)
    return matrices


def _check_particles(observation: Tensor, actions: Tensor) -> None:
    if observation.dim() != 2 or actions.dim() != 3 or len(observation) != len(actions):
        raise ValueError(f"expected (B, S) and (B, N, A), got {tuple(observation.shape)} and {tuple(actions.shape)}")
