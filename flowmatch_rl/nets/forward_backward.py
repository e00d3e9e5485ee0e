"""Networks of forward-backward representations: F, B, and the policies of all embeddings."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import check_range, check_word
from flowmatch_rl.nets.architecture import ACTIVATIONS, Activation
from flowmatch_rl.nets.layer_norm import EPSILON
from flowmatch_rl.nets.observations import ObservationFeatures
from flowmatch_rl.objectives import on_sphere
from flowmatch_rl.shapes import check_same_shape


@dataclass(frozen=True)
class ForwardBackwardArchitecture:
    """Configuration of the networks of a forward-backward representation.

    Args:
        embedding_dim: Dimension d of the embeddings z, and of F and B.
        hidden_dim: Width of every hidden layer.
        num_layers: Hidden layers of each network, at least 1.
        num_members: Members M of F, at least 1.
        num_frequencies: Frequencies 1/4, 1/2, 1, 2, ... per standard deviation, at which sines and cosines of the
            state are inputs too; at most 20, 0 for none. They make room for sharp edges such as walls.
        layer_norm: Whether the first hidden layer is normalised.
        normalise_backward: Whether B has the norm ``sqrt(d)``, on the sphere that embeddings are drawn from.
        activation: Activation of the hidden layers.

    Raises:
        UserError: If a number is out of its range.
    """

    embedding_dim: int = 64
    hidden_dim: int = 256
    num_layers: int = 2
    num_members: int = 2
    num_frequencies: int = 0
    layer_norm: bool = True
    normalise_backward: bool = True
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        check_range("[2, inf)", embedding_dim=self.embedding_dim)
        check_range("[0, 20]", num_frequencies=self.num_frequencies)  # finer waves are beyond float32
        check_word(tuple(ACTIVATIONS), activation=self.activation)
        check_range("[1, inf)", hidden_dim=self.hidden_dim, num_layers=self.num_layers, num_members=self.num_members)

    def build(self, state_dim: int, action_dim: int) -> "ForwardBackwardNetworks":
        """Build the networks for states and actions of the given dimensions."""
        return ForwardBackwardNetworks(self, state_dim, action_dim)


class ForwardBackwardNetworks(nn.Module):
    """F(s, a, z) of M members, B(s), and the action of the policy of every z.

    Args:
        architecture: Configuration of the networks.
        state_dim: Dimension S.
        action_dim: Dimension A.
    """

    def __init__(self, architecture: ForwardBackwardArchitecture, state_dim: int, action_dim: int) -> None:
        super().__init__()
        waves = ObservationFeatures(num_frequencies=architecture.num_frequencies)
        features, dimension = waves.dimension(state_dim), architecture.embedding_dim
        self.embedding_dim, self._features = dimension, waves.build(state_dim)
        self._on_sphere = architecture.normalise_backward
        members, with_embedding = architecture.num_members, features + dimension
        self.forward_layers = _Layers(architecture, members, (features + action_dim, with_embedding), dimension)
        self.backward_layers = _Layers(architecture, 1, (features,), dimension)
        self.policy_layers = _Layers(architecture, 1, (features, with_embedding), action_dim)

    def represent(self, state: Tensor, action: Tensor, embedding: Tensor) -> Tensor:
        """Forward representations F of all members, shape (M, B, d).

        Args:
            state: Standardised states, shape (B, S).
            action: Actions in [-1, 1], shape (B, A).
            embedding: Embeddings of the policies that are followed, shape (B, d).

        Raises:
            ValueError: If the batches differ.
        """
        check_same_shape(state=state[:, 0], action=action[:, 0], embedding=embedding[:, 0])
        features = self._features(state)
        return self.forward_layers(torch.cat([features, action], dim=-1), torch.cat([features, embedding], dim=-1))

    def represent_arrival(self, state: Tensor) -> Tensor:
        """Backward representations B, shape (B, d).

        Args:
            state: Standardised states, shape (B, S).
        """
        found = self.backward_layers(self._features(state))[0]
        return on_sphere(found) if self._on_sphere else found

    def act(self, state: Tensor, embedding: Tensor) -> Tensor:
        """Actions in [-1, 1] of the policies of embeddings, shape (B, A).

        Args:
            state: Standardised states, shape (B, S).
            embedding: Shape (B, d).

        Raises:
            ValueError: If the batches differ.
        """
        check_same_shape(state=state[:, 0], embedding=embedding[:, 0])
        features = self._features(state)
        return self.policy_layers(features, torch.cat([features, embedding], dim=-1))[0].tanh()


class _Layers(nn.Module):
    """M networks of fully connected layers, one batched product per layer.

    The first layer has units of their own for each part of the input, so that none is drowned by a larger one.

    Args:
        architecture: Width, number, activation and normalisation of the hidden layers.
        members: Number M of networks.
        inputs: Dimension of each part of the input.
        outputs: Dimension of the output.
    """

    def __init__(
        self, architecture: ForwardBackwardArchitecture, members: int, inputs: tuple[int, ...], outputs: int
    ) -> None:
        super().__init__()
        width = architecture.hidden_dim
        part = -(-width // len(inputs))
        sizes = [part * len(inputs), *[width] * (architecture.num_layers - 1), outputs]
        pairs = [*((size, part) for size in inputs), *pairwise(sizes)]
        self.weights = nn.ParameterList(nn.Parameter(_orthogonal(members, *pair)) for pair in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, size)) for _, size in pairs)
        self._layer_norm = architecture.layer_norm
        self._activation = ACTIVATIONS[architecture.activation]

    def forward(self, *parts: Tensor) -> Tensor:
        """Outputs (M, B, outputs) of all members for the parts of the input, each (B, inputs)."""
        layers = list(zip(self.weights, self.biases, strict=True))
        first = zip(parts, layers[: len(parts)], strict=True)
        h = torch.cat([self._first(part, *layer) for part, layer in first], dim=-1)
        *hidden, (weight, bias) = layers[len(parts) :]
        for hidden_weight, hidden_bias in hidden:
            h = self._activation(torch.baddbmm(hidden_bias, h, hidden_weight))
        return torch.baddbmm(bias, h, weight)

    def _first(self, part: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = torch.baddbmm(bias, part.expand(len(weight), -1, -1), weight)
        return (
            nn.functional.layer_norm(h, h.shape[-1:], eps=EPSILON).tanh() if self._layer_norm else self._activation(h)
        )


def _orthogonal(members: int, rows: int, columns: int) -> Tensor:
    """One orthogonal matrix per member, shape (members, rows, columns)."""
    matrices = torch.empty(members, rows, columns)
    for matrix in matrices:
        nn.init.orthogonal_(matrix)
    return matrices
