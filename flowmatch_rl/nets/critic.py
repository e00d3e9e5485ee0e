"""An ensemble of action-value networks, evaluated as stacked matrix products."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from flowmatch_rl.nets.chunks import map_in_chunks

ValueReduction = Literal["min", "mean"]


@dataclass(frozen=True)
class CriticArchitecture:
    """Shape of an ensemble of critics with rectified linear units.

    Args:
        num_members: Members M, at least 1.
        hidden_dim: Width of every hidden layer.
        num_layers: Hidden layers, at least 1.

    Raises:
        ValueError: If a number is below 1.
    """

    num_members: int = 2
    hidden_dim: int = 256
    num_layers: int = 2

    def __post_init__(self) -> None:
        if min(self.num_members, self.hidden_dim, self.num_layers) < 1:
            raise ValueError(f"expected positive numbers, got {self}")

    def build(self, observation_dim: int, action_dim: int) -> "CriticEnsemble":
        """Build the ensemble for observations and actions of the given dimensions."""
        return CriticEnsemble(self, observation_dim, action_dim)


class CriticEnsemble(nn.Module):
    """Action values Q(s, a) of M networks.

    The first layer is a sum of a map of the observation and a map of the action, so that N actions per state share
    the observation's. Where few rows are evaluated all members are one batched product; see ``action_values``.

    Args:
        architecture: Shape of the ensemble.
        observation_dim: Dimension S.
        action_dim: Dimension A.
    """

    def __init__(self, architecture: CriticArchitecture, observation_dim: int, action_dim: int) -> None:
        super().__init__()
        members, width = architecture.num_members, architecture.hidden_dim
        joint = _orthogonal(members, observation_dim + action_dim, width)
        self.observation_weight = nn.Parameter(joint[:, :observation_dim].clone())  # (M, S, H)
        self.action_weight = nn.Parameter(joint[:, observation_dim:].clone())  # (M, A, H)
        self.input_bias = nn.Parameter(torch.zeros(members, 1, width))
        hidden = range(architecture.num_layers - 1)
        self.hidden_weights = nn.ParameterList(nn.Parameter(_orthogonal(members, width, width)) for _ in hidden)
        self.hidden_biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, width)) for _ in hidden)
        self.value_weight = nn.Parameter(_orthogonal(members, width, 1))  # (M, H, 1)
        self.value_bias = nn.Parameter(torch.zeros(members, 1, 1))

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
        if observation.shape[:-1] != action.shape[:-1] or observation.dim() != 2:
            raise ValueError(f"expected (B, S) and (B, A), got {tuple(observation.shape)} and {tuple(action.shape)}")
        members = self.num_members
        x = torch.cat([observation, action], dim=-1).expand(members, -1, -1)
        h = torch.baddbmm(self.input_bias, x, torch.cat([self.observation_weight, self.action_weight], dim=1)).relu()
        for weight, bias in zip(self.hidden_weights, self.hidden_biases, strict=True):
            h = torch.baddbmm(bias, h, weight).relu()
        return torch.baddbmm(self.value_bias, h, self.value_weight).squeeze(-1)

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

    def _values(self, reduction: ValueReduction, observation: Tensor, actions: Tensor) -> tuple[Tensor]:
        members = torch.stack([self._member(m, observation, actions)[0] for m in range(self.num_members)])
        return (members.amin(0) if reduction == "min" else members.mean(0),)

    def _values_and_gradients(
        self, reduction: ValueReduction, observation: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        evaluated = [self._member(m, observation, actions) for m in range(self.num_members)]
        members = torch.stack([values for values, _ in evaluated])
        if reduction == "mean":
            reduced, share = members.mean(0), torch.full_like(members, 1.0 / self.num_members)
        else:
            reduced, share = members.amin(0), nn.functional.one_hot(members.argmin(0), self.num_members).movedim(-1, 0)
        parts = [self._member_gradient(m, hiddens, share[m]) for m, (_, hiddens) in enumerate(evaluated)]
        return reduced, torch.stack(parts).sum(0)

    def _member(self, m: int, observation: Tensor, actions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Values (B, N) of one member and its hidden layers, each (B N, H). Separate products win on many rows."""
        shared = observation @ self.observation_weight[m] + self.input_bias[m]  # (B, H)
        h = (actions @ self.action_weight[m]).add_(shared[:, None]).relu_().flatten(0, 1)
        hiddens = [h]
        for weight, bias in zip(self.hidden_weights, self.hidden_biases, strict=True):
            h = torch.addmm(bias[m], h, weight[m]).relu_()
            hiddens.append(h)
        value = torch.addmm(self.value_bias[m], h, self.value_weight[m])
        return value.view(actions.shape[:2]), hiddens

    def _member_gradient(self, m: int, hiddens: list[Tensor], share: Tensor) -> Tensor:
        """Gradient (B, N, A) of ``share`` times one member's values."""
        last = hiddens[-1]
        gradient = share.to(last.dtype).reshape(-1, 1) * self.value_weight[m].squeeze(-1).to(last.dtype)
        for hidden, weight in zip(reversed(hiddens[1:]), reversed(list(self.hidden_weights)), strict=True):
            gradient = _through_relu(gradient, hidden) @ weight[m].T
        return (_through_relu(gradient, hiddens[0]) @ self.action_weight[m].T).view(*share.shape, -1)


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
