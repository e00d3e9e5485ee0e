"""An ensemble of networks that predict what one step changes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import check_range, check_word
from flowmatch_rl.nets.architecture import ACTIVATIONS, Activation
from flowmatch_rl.nets.observations import waves
from flowmatch_rl.shapes import check_same_shape


@dataclass(frozen=True)
class DynamicsArchitecture:
    """Configuration of an ensemble of one-step models.

    Args:
        num_members: Members M, at least 2: their disagreement says how far they can be trusted.
        hidden_dim: Width of every hidden layer.
        num_layers: Hidden layers, at least 1.
        num_frequencies: Frequencies 1/4, 1/2, 1, 2, ... per standard deviation, at which sines and cosines of the
            state are inputs too; at most 20, 0 for none. They make room for the sharp edges of contacts.
        activation: Activation of the hidden layers.

    Raises:
        UserError: If a number is too small.
    """

    num_members: int = 3
    hidden_dim: int = 128
    num_layers: int = 2
    num_frequencies: int = 0
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check_range("[2, inf)", num_members=self.num_members)
        check_range("[0, 20]", num_frequencies=self.num_frequencies)  # finer waves are beyond float32
        check_word(tuple(ACTIVATIONS), activation=self.activation)
        check_range("[1, inf)", hidden_dim=self.hidden_dim, num_layers=self.num_layers)

    def build(self, state_dim: int, action_dim: int) -> "DynamicsNetwork":
        """Build the ensemble for states and actions of the given dimensions."""
        return DynamicsNetwork(self, state_dim, action_dim)


class DynamicsNetwork(nn.Module):
    """The change of the state in one step, and the logit that it arrives in a terminal state, of M networks.

    Args:
        architecture: Configuration of the ensemble.
        state_dim: Dimension S.
        action_dim: Dimension A.
    """

    def __init__(self, architecture: DynamicsArchitecture, state_dim: int, action_dim: int) -> None:
        super().__init__()
        members, width = architecture.num_members, architecture.hidden_dim
        self._frequencies = architecture.num_frequencies
        self._activation = ACTIVATIONS[architecture.activation]
        inputs = state_dim * (1 + 2 * self._frequencies) + action_dim
        sizes = [inputs, *[width] * architecture.num_layers, state_dim + 1]
        bounds = [1.0 / math.sqrt(size) for size in sizes[:-1]]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(members, *pair).uniform_(-bound, bound))
            for *pair, bound in zip(sizes[:-1], sizes[1:], bounds, strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, size)) for size in sizes[1:])

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Changes and logits of all members.

        Args:
            state: Standardised states, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).

        Returns:
            Changes in units of their scale, shape (M, B, S), and logits, shape (M, B).

        Raises:
            ValueError: If the batches differ.
        """
        check_same_shape(state=state[:, 0], action=action[:, 0])
        x = torch.cat([waves(state, self._frequencies), action], dim=-1).expand(len(self.biases[0]), -1, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            x = x if layer == last else self._activation(x)
        return x[..., :-1], x[..., -1]
