"""A U-shaped network whose normalisations are scaled and shifted by time and condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.nets.architecture import (
    ACTIVATIONS,
    Activation,
    FlowNetwork,
    NamedArchitecture,
    check_presence,
    check_shared_batch,
)
from flowmatch_rl.nets.embeddings import SinusoidalEmbedding
from flowmatch_rl.shapes import append_dims


@dataclass(frozen=True)
class FilmUNetArchitecture(NamedArchitecture):
    """Configuration of a ``FilmUNet``.

    Args:
        block_dims: Width of each stage on the way down; the way up mirrors it.
        time_features: Number of sinusoidal features of the flow time, even.
        time_dims: Widths of the layers that encode those features.
        condition_dims: Widths of the layers that encode the condition.
        activation: Nonlinearity of all layers.
        max_frequency: Highest frequency of the time's features, radians per unit of flow time, at least 1, the lowest.
            A field that generates details of relative size s changes within a time of s before t = 1, which needs a
            frequency near 1 / s.

    Raises:
        UserError: If there is no stage, no layer of an encoder, a width below 1 or a frequency below 1.

    Reference:
        The widths are those of Farebrother et al., arXiv:2503.09817, Table 5; the paper leaves the wiring open.
    """

    block_dims: tuple[int, ...] = (512, 512, 512)
    time_features: int = 256
    time_dims: tuple[int, ...] = (256, 256)
    condition_dims: tuple[int, ...] = (512, 512, 512)
    activation: Activation = "mish"
    max_frequency: float = 100.0

    def __post_init__(self) -> None:
        for name in ("block_dims", "time_dims", "condition_dims"):
            if min(getattr(self, name), default=0) < 1:
                raise UserError(f"{name} must hold at least one width, each at least 1, got {getattr(self, name)}")
        check_range("[1, inf)", max_frequency=self.max_frequency)

    def build(self, sample_dim: int, condition_dim: int, takes_duration: bool = False) -> "FilmUNet":
        """Build the network; see ``Architecture``."""
        return FilmUNet(self, sample_dim, condition_dim, takes_duration)


class FilmUNet(FlowNetwork):
    """A U-shaped network ``velocity(x, t, condition)``: stages of given widths downward, and upward in reverse.

    A block normalises its input, scales and shifts each feature by linear maps of the encoded time and condition
    (FiLM), applies the activation and a linear map; it adds its input where the widths agree. On the way up a linear
    map of the input of the opposite stage is added. Maps inside the blocks have no bias, since the shifts replace it.

    A scale or shift is the sum of a map of the encoded condition, computed for all blocks once per condition in
    ``bind``, and a map of the encoded time, computed once per time.

    At initialisation the scales are 1 and the shifts 0 for any time and condition, and the velocity is 0.

    Args:
        architecture: Configuration of the network.
        sample_dim: Dimension D of the samples.
        condition_dim: Dimension C of the condition; 0 for none.
        takes_duration: Whether it predicts the average velocity over an interval whose duration it takes.
    """

    film_at_rest: Tensor

    def __init__(
        self, architecture: FilmUNetArchitecture, sample_dim: int, condition_dim: int, takes_duration: bool = False
    ) -> None:
        super().__init__()
        act, widths = architecture.activation, architecture.block_dims
        stages = list(pairwise((widths[0], *widths)))  # widths before and after each stage on the way down
        self.activation = ACTIVATIONS[act]
        self.embed_time = SinusoidalEmbedding(architecture.time_features, architecture.max_frequency, 1.0)
        self.encode_time = _Encoder(architecture.time_features, architecture.time_dims, act)
        self.encode_duration = (
            _Encoder(architecture.time_features, architecture.time_dims, act) if takes_duration else None
        )
        self.encode_condition = _Encoder(condition_dim, architecture.condition_dims, act) if condition_dim else None
        self.from_sample = nn.Linear(sample_dim, widths[0])
        self.down = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in stages)
        self.up = nn.ModuleList(nn.Linear(b, a, bias=False) for a, b in reversed(stages))
        self.skip = nn.ModuleList(nn.Linear(a, a, bias=False) for a, _ in reversed(stages))
        self.to_velocity = nn.Linear(widths[0], sample_dim)
        # Each normalised layer, last the one before ``to_velocity``, has a scale and a shift per feature.
        self.film_sizes = [2 * layer.in_features for layer in _linear_layers(self.down, self.up)] + [2 * widths[0]]
        size = sum(self.film_sizes)
        self.film_of_time = nn.Linear(architecture.time_dims[-1], size, bias=False)
        self.film_bias = nn.Parameter(torch.zeros(size))
        rest = [torch.ones(n // 2) if half == 0 else torch.zeros(n // 2) for n in self.film_sizes for half in (0, 1)]
        self.register_buffer("film_at_rest", torch.cat(rest), persistent=False)
        self.film_of_condition = nn.Linear(architecture.condition_dims[-1], size, bias=False) if condition_dim else None
        self._initialise()

    def _initialise(self) -> None:
        # Sample and bias start with equal weight: the first normalisation would drop the length of a sample alone.
        nn.init.normal_(self.from_sample.weight, std=self.from_sample.in_features**-0.5)
        nn.init.normal_(self.from_sample.bias)
        for layer in _linear_layers(self.down, self.up, self.skip):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for layer in (self.film_of_time, self.film_of_condition):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        self.begin_at_zero()

    def bind(self, condition: Tensor | None) -> Callable[..., Tensor]:
        """The field at a fixed condition, whose features are computed once; see ``FlowNetwork``."""
        check_presence(condition, self.film_of_condition is not None)
        film = self.film_bias + self.film_at_rest
        if condition is not None and self.encode_condition is not None and self.film_of_condition is not None:
            film = functional.linear(self.encode_condition(condition), self.film_of_condition.weight, film)
        films = film.split(self.film_sizes, -1)

        def velocity(x: Tensor, t: Tensor, _: Tensor | None = None, duration: Tensor | None = None) -> Tensor:
            if condition is not None:
                check_shared_batch(condition, x)
            return self._evaluate(x, self._time_code(x, t, duration), films)

        return velocity

    def _time_code(self, x: Tensor, t: Tensor, duration: Tensor | None) -> Tensor:
        """Encoded time and duration, shape (*batch with sizes of 1, T)."""
        code = self.encode_time(self.embed_time(append_dims(t, like=x[..., 0])))
        if self.encode_duration is not None:
            length = torch.zeros_like(t) if duration is None else duration
            return code + self.encode_duration(self.embed_time(append_dims(length, like=x[..., 0])))
        if duration is not None:
            raise ValueError("this network takes no duration; build it with takes_duration=True")
        return code

    def _evaluate(self, x: Tensor, code: Tensor, films: Sequence[Tensor]) -> Tensor:
        """Velocity (*batch, D) for encoded times and the condition's part of the scales and shifts of each block."""
        maps = self.film_of_time.weight.split(self.film_sizes)

        def normalised(h: Tensor, block: int) -> Tensor:
            scale, shift = _affine(films[block], code, maps[block]).chunk(2, -1)
            return self.activation(torch.addcmul(shift, functional.layer_norm(h, h.shape[-1:]), scale))

        h = self.from_sample(x)
        skips: list[Tensor] = []
        for i, layer in enumerate(self.down):
            skips.append(h)
            h = _residual(h, layer(normalised(h, i)))
        for i, (layer, skip) in enumerate(zip(self.up, self.skip, strict=True), len(self.down)):
            h = _residual(h, layer(normalised(h, i))) + skip(skips.pop())
        return self.to_velocity(normalised(h, len(self.film_sizes) - 1))


class _Encoder(nn.Module):
    """Linear maps, each followed by the activation, shape (..., in_dim) to (..., dims[-1])."""

    def __init__(self, in_dim: int, dims: tuple[int, ...], activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((in_dim, *dims)))
        for layer in _linear_layers(self.layers):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


def _residual(h: Tensor, update: Tensor) -> Tensor:
    return h + update if h.shape == update.shape else update


def _linear_layers(*lists: nn.ModuleList) -> list[nn.Linear]:
    return [layer for layers in lists for layer in layers if isinstance(layer, nn.Linear)]


def _affine(constant: Tensor, code: Tensor, weight: Tensor) -> Tensor:
    """``constant + code weight^T``, in one product where no size is shared."""
    if constant.dim() == 1 or constant.shape[:-1] != code.shape[:-1]:
        return functional.linear(code, weight) + constant
    return torch.addmm(constant.flatten(0, -2), code.flatten(0, -2), weight.T).unflatten(0, code.shape[:-1])
