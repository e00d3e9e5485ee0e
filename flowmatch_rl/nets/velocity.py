"""The residual velocity network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmatch_rl.nets.architecture import (
    ACTIVATIONS,
    DIRECTIONAL_DERIVATIVES,
    Activation,
    Architecture,
    FlowNetwork,
    check_presence,
    check_shared_batch,
)
from flowmatch_rl.nets.embeddings import SinusoidalEmbedding
from flowmatch_rl.nets.observations import ObservationFeatures
from flowmatch_rl.shapes import append_dims


@dataclass(frozen=True)
class VelocityArchitecture(Architecture):
    """Configuration of a velocity network.

    Args:
        hidden_dim: Width of every layer.
        num_blocks: Residual blocks ``h + activation(linear(h))`` after the first layer.
        activation: Nonlinearity.
        time_features: Number of sinusoidal features of the flow time, even.
        max_frequency: Highest frequency of those features, radians per unit of flow time. At 1 the field is very
            smooth in time; sharp densities may need more.
        residual: Whether the blocks add their input.
        balanced_inputs: Whether sample, time, duration and condition start with equal weight in the first layer.
            Otherwise every feature does, and a sample of few dimensions is initially dominated by the features of the
            time.
        condition_mean: What is taken from each entry of the condition; nothing if empty. See ``ObservationFeatures``.
        condition_std: What each entry is then divided by; 1 if empty.
        num_frequencies: Frequencies at which sines and cosines of the condition are inputs too.
    """

    hidden_dim: int = 256
    num_blocks: int = 2
    activation: Activation = "gelu"
    time_features: int = 128
    max_frequency: float = 1.0
    residual: bool = True
    balanced_inputs: bool = False
    condition_mean: tuple[float, ...] = ()
    condition_std: tuple[float, ...] = ()
    num_frequencies: int = 0

    def build(self, sample_dim: int, condition_dim: int, takes_duration: bool = False) -> "VelocityNetwork":
        """Build the network; see ``Architecture``."""
        return VelocityNetwork(self, sample_dim, condition_dim, takes_duration)


class VelocityNetwork(FlowNetwork):
    """A residual network ``velocity(x, t, condition)``.

    The first layer is a sum of one linear map per input: for particles (B, N, D) with a condition of shape (B, 1, C)
    the condition's map is computed once per state, and that of a scalar time once.

    Args:
        architecture: Configuration of the network.
        sample_dim: Dimension D of the samples.
        condition_dim: Dimension C of the condition; 0 for none.
        takes_duration: Whether it predicts the average velocity over an interval whose duration it takes.
    """

    def __init__(
        self,
        architecture: VelocityArchitecture,
        sample_dim: int,
        condition_dim: int,
        takes_duration: bool = False,
    ) -> None:
        super().__init__()
        width = architecture.hidden_dim
        self.residual = architecture.residual
        self.activation = ACTIVATIONS[architecture.activation]
        self.activation_derivative = DIRECTIONAL_DERIVATIVES[architecture.activation]
        self.embed_time = SinusoidalEmbedding(architecture.time_features, architecture.max_frequency)
        self.from_sample = nn.Linear(sample_dim, width)
        self.from_time = nn.Linear(architecture.time_features, width, bias=False)
        # Plain numbers, since a network that is configured by its class has no objects in its arguments.
        features = ObservationFeatures(
            tuple(architecture.condition_mean), tuple(architecture.condition_std), architecture.num_frequencies
        )
        self.features = features.build(condition_dim)
        condition_dim = features.dimension(condition_dim)
        self.from_condition = nn.Linear(condition_dim, width, bias=False) if condition_dim else None
        self.from_duration = nn.Linear(architecture.time_features, width, bias=False) if takes_duration else None
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(architecture.num_blocks))
        self.to_velocity = nn.Linear(width, sample_dim)
        self._initialise(architecture.balanced_inputs)

    def _initialise(self, balanced_inputs: bool) -> None:
        """Orthogonal matrices of gain sqrt(2), the first layer's as one matrix over all its inputs; zero biases."""
        inputs = (self.from_sample, self.from_time, self.from_condition, self.from_duration)
        parts = [layer for layer in inputs if layer is not None]
        joint = torch.empty(parts[0].out_features, sum(m.in_features for m in parts))
        nn.init.orthogonal_(joint, gain=2.0**0.5)
        with torch.no_grad():
            for part, block in zip(parts, joint.split([m.in_features for m in parts], dim=1), strict=True):
                part.weight.copy_(block)
        for layer in (*self.hidden_layers(), self.to_velocity):
            nn.init.orthogonal_(layer.weight, gain=2.0**0.5)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.from_sample.bias)
        if balanced_inputs:
            # Each input then adds a term of unit variance: entries of samples have it, a pair of sinusoids has norm 1.
            for part in parts:
                sinusoids = part is self.from_time or part is self.from_duration
                energy = part.in_features / 2 if sinusoids else part.in_features
                nn.init.normal_(part.weight, std=energy**-0.5)

    def hidden_layers(self) -> list[nn.Linear]:
        """Linear maps of the residual blocks."""
        return [layer for layer in self.blocks if isinstance(layer, nn.Linear)]

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        """The field at a fixed condition, whose features are computed once; see ``FlowNetwork``."""
        check_presence(condition, self.from_condition is not None)
        features = (
            None if condition is None or self.from_condition is None else self.from_condition(self.features(condition))
        )

        def velocity(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            if condition is not None:
                check_shared_batch(condition, x)
            return self._from_features(x, t, features, duration)

        return velocity

    @torch.no_grad()
    def derivative_along_flow(
        self, x: Tensor, velocity: Tensor, t: Tensor, duration: Tensor, condition: Tensor | None
    ) -> Tensor:
        """Derivative in the direction (velocity, 1, -1) of (x, t, duration), written out; see ``FlowNetwork``."""
        check_presence(condition, self.from_condition is not None)
        if self.from_duration is None:
            raise ValueError("this network takes no duration; build it with takes_duration=True")
        (time, of_time), (length, of_length) = (self.embed_time.with_derivative(each) for each in (t, duration))
        z = self.from_sample(x) + (self.from_time(time) + self.from_duration(length))
        if condition is not None and self.from_condition is not None:
            z = z + self.from_condition(self.features(condition))
        direction = functional.linear(velocity, self.from_sample.weight)
        h, dh = self._activated(z, direction + self.from_time(of_time) - self.from_duration(of_length))
        for block in self.hidden_layers():
            update, of_update = self._activated(block(h), functional.linear(dh, block.weight))
            h, dh = (h + update, dh + of_update) if self.residual else (update, of_update)
        return functional.linear(dh, self.to_velocity.weight)

    def _activated(self, z: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The activation, and its derivative in a direction."""
        return self.activation(z), self.activation_derivative(direction.to(z.dtype), z)

    def _from_features(self, x: Tensor, t: Tensor, features: Tensor | None, duration: Tensor | None) -> Tensor:
        shared = self.from_time(self.embed_time(append_dims(t, like=x[..., 0])))
        if self.from_duration is not None:
            length = torch.zeros_like(t) if duration is None else duration
            shared = shared + self.from_duration(self.embed_time(append_dims(length, like=x[..., 0])))
        elif duration is not None:
            raise ValueError("this network takes no duration; build it with takes_duration=True")
        if features is not None:
            shared = shared + features
        h = self.activation(self.from_sample(x) + shared)
        for block in self.blocks:
            update = self.activation(block(h))
            h = h + update if self.residual else update
        return self.to_velocity(h)
