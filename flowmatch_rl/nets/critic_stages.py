"""What a hidden layer of several critics can be: functions with a way back for a gradient, and chains of them."""

import abc
from collections.abc import Callable, Iterable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from flowmatch_rl.nets.layer_norm import EPSILON, Normalisation, normalised, normalised_gradient

Rows: TypeAlias = Tensor | None
"""Indices of the rows of a gradient among those of a function's input, integer, shape (R',); all R rows if None."""

Pullback: TypeAlias = Callable[[Tensor, Rows], Tensor]
"""Gradient at the input of a function, from that at its output, at some rows; shapes (R', H) and (R', H')."""


class Stage(nn.Module, abc.ABC):
    """A function of a hidden layer of M critics, each of which has weights of its own."""

    @abc.abstractmethod
    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows.

        Args:
            h: Shape (M', B, H).
            members: Indices of the members, integer, shape (M',); all if None.
            learning: Whether statistics of a batch are those of these rows, which the running ones then learn from; of
                all members only.

        Returns:
            Shape (M', B, H').
        """

    @abc.abstractmethod
    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd. Separate products are faster on many rows.

        Args:
            m: Index of the member.
            h: Shape (R, H).

        Returns:
            Result, shape (R, H'), and what returns the gradient at ``h`` from that at the result.
        """


class PlainTrunk(Stage):
    """Rectified layers, each of which may be normalised before its rectified units.

    Args:
        num_members: Members M.
        width: Features H.
        num_layers: Layers, of which the first is the map of the inputs.
        layer_norm: Whether the layers are normalised.
    """

    def __init__(self, num_members: int, width: int, num_layers: int, layer_norm: bool) -> None:
        super().__init__()
        hidden, normal = range(num_layers - 1), range(num_layers if layer_norm else 0)
        self.hidden_weights = nn.ParameterList(nn.Parameter(orthogonal(num_members, width, width)) for _ in hidden)
        self.hidden_biases = nn.ParameterList(nn.Parameter(torch.zeros(num_members, 1, width)) for _ in hidden)
        self.norm_weights = nn.ParameterList(nn.Parameter(torch.ones(num_members, 1, width)) for _ in normal)
        self.norm_biases = nn.ParameterList(nn.Parameter(torch.zeros(num_members, 1, width)) for _ in normal)

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Features of some members on the same rows."""
        h = self._activated(0, h, members)
        layers = zip(self.hidden_weights, self.hidden_biases, strict=True)
        for layer, (weight, bias) in enumerate(layers, start=1):
            h = self._activated(layer, torch.baddbmm(_of(bias, members), h, _of(weight, members)), members)
        return h

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Features of one member, without autograd."""
        h, pullback = self._member_activated(m, 0, h)
        pullbacks = [pullback]
        layers = zip(self.hidden_weights, self.hidden_biases, strict=True)
        for layer, (weight, bias) in enumerate(layers, start=1):
            h, pullback = self._member_activated(m, layer, torch.addmm(bias[m], h, weight[m]))
            pullbacks.append(pullback)

        def gradient_at_input(gradient: Tensor, rows: Rows) -> Tensor:
            for layer in range(len(pullbacks) - 1, 0, -1):
                gradient = pullbacks[layer](gradient, rows) @ self.hidden_weights[layer - 1][m].T
            return pullbacks[0](gradient, rows)

        return h, gradient_at_input

    def _activated(self, layer: int, h: Tensor, members: Tensor | None) -> Tensor:
        if len(self.norm_weights):
            h = _layer_norm(h, _of(self.norm_weights[layer], members), _of(self.norm_biases[layer], members))
        return h.relu()

    def _member_activated(self, m: int, layer: int, h: Tensor) -> tuple[Tensor, Pullback]:
        if not len(self.norm_weights):
            return _rectified(h)
        h, through_norm = _member_norm(h, self.norm_weights[layer][m, 0], self.norm_biases[layer][m, 0])
        h, through_units = _rectified(h)
        return h, lambda gradient, rows: through_norm(through_units(gradient, rows), rows)


class Chain(Stage):
    """Stages one after another.

    Args:
        *stages: The stages, of which the first of a residual block must not overwrite its input.
    """

    def __init__(self, *stages: Stage) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        for stage in self.stages:
            h = stage(h, members, learning)
        return h

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        stages: Iterable[Stage] = self.stages  # pyright: ignore[reportAssignmentType]
        pullbacks: list[Pullback] = []
        for stage in stages:
            h, pullback = stage.member(m, h)
            pullbacks.append(pullback)

        def gradient_at_input(gradient: Tensor, rows: Rows) -> Tensor:
            for pullback in reversed(pullbacks):
                gradient = pullback(gradient, rows)
            return gradient

        return h, gradient_at_input


class Residual(Stage):
    """The input plus what a chain of stages makes of it.

    Args:
        *stages: The chain.
    """

    def __init__(self, *stages: Stage) -> None:
        super().__init__()
        self.step = Chain(*stages)

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        return h + self.step(h, members, learning)

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        step, pullback = self.step.member(m, h)
        return h + step, lambda gradient, rows: gradient + pullback(gradient, rows)


class Rectified(Stage):
    """Rectified linear units; those of one member overwrite their input."""

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        return h.relu()

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        return _rectified(h)


class Linear(Stage):
    """Linear maps.

    Args:
        num_members: Members M.
        rows: Inputs.
        columns: Outputs.
    """

    def __init__(self, num_members: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(orthogonal(num_members, rows, columns))  # (M, rows, columns)
        self.bias = nn.Parameter(torch.zeros(num_members, 1, columns))

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        return torch.baddbmm(_of(self.bias, members), h, _of(self.weight, members))

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        weight = self.weight[m]
        return torch.addmm(self.bias[m], h, weight), lambda gradient, _: gradient @ weight.T


class Norm(Stage):
    """Layer norms.

    Args:
        num_members: Members M.
        width: Features H.
    """

    def __init__(self, num_members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_members, 1, width))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, width))

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        return _layer_norm(h, _of(self.weight, members), _of(self.bias, members))

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        return _member_norm(h, self.weight[m, 0], self.bias[m, 0])


class UnitScale(Stage):
    """Rows divided by their root mean square."""

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        return h * _inverse_scale(h).to(h.dtype)

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        inverse = _inverse_scale(h).to(h.dtype)
        output = h * inverse

        def gradient_at_input(gradient: Tensor, rows: Rows) -> Tensor:
            y = _at(output, rows)
            return _at(inverse, rows) * (gradient - y * (gradient * y).mean(-1, keepdim=True))

        return output, gradient_at_input


def _inverse_scale(h: Tensor) -> Tensor:
    """One over the root mean square of each row, shape (..., 1), in float32 at least."""
    return h.to(torch.promote_types(h.dtype, torch.float32)).square().mean(-1, keepdim=True).add(EPSILON).rsqrt()


class BatchNorm(Stage):
    """Batch renormalisation; see ``BatchNormLayers``.

    Args:
        num_members: Members M.
        width: Features H.
        momentum: Rate at which running statistics keep their value, in [0, 1); they are averages at first.
        warm_up: Updates of plain batch normalisation, at least 0.
    """

    mean: Tensor
    variance: Tensor
    num_updates: Tensor

    _MOST_RATIO: ClassVar = 3.0
    _MOST_SHIFT: ClassVar = 5.0

    def __init__(self, num_members: int, width: int, momentum: float, warm_up: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_members, 1, width))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, width))
        self.register_buffer("mean", torch.zeros(num_members, 1, width))
        self.register_buffer("variance", torch.ones(num_members, 1, width))
        self.register_buffer("num_updates", torch.tensor(0))
        self._momentum, self._warm_up = momentum, warm_up

    def forward(self, h: Tensor, members: Tensor | None, learning: bool) -> Tensor:
        """Apply the functions of some members to the same rows."""
        h = h.to(self.weight.dtype)
        if learning and self.training:
            return torch.addcmul(self.bias, self._normalised_by_batch(h), self.weight)
        scale, shift = self._affine()
        return torch.addcmul(_of(shift, members), h, _of(scale, members))

    def member(self, m: int, h: Tensor) -> tuple[Tensor, Pullback]:
        """Apply the function of one member, without autograd."""
        scale, shift = (of_all[m] for of_all in self._affine())
        return torch.addcmul(shift, h.to(scale.dtype), scale), lambda gradient, _: gradient * scale

    def _affine(self) -> tuple[Tensor, Tensor]:
        """What the running statistics amount to: a scale and a shift, each (M, 1, H)."""
        scale = self.weight * (self.variance + EPSILON).rsqrt()
        return scale, self.bias - self.mean * scale

    def _normalised_by_batch(self, h: Tensor) -> Tensor:
        """Rows (M, B, H) by their own statistics, corrected toward the running ones, which learn from them."""
        mean = h.mean(1, keepdim=True)
        centred = h - mean
        variance = centred.square().mean(1, keepdim=True)  # `var_mean` is several times slower on CPUs
        with torch.no_grad():
            inverse = (self.variance + EPSILON).rsqrt()
            ratio = ((variance + EPSILON).sqrt() * inverse).clamp(1.0 / self._MOST_RATIO, self._MOST_RATIO)
            shift = ((mean - self.mean) * inverse).clamp(-self._MOST_SHIFT, self._MOST_SHIFT)
            plain = self.num_updates < self._warm_up
            ratio, shift = ratio.masked_fill(plain, 1.0), shift.masked_fill(plain, 0.0)
            self.num_updates += 1
            rate = (1.0 / self.num_updates.to(h.dtype)).clamp_min(1.0 - self._momentum)
            self.mean.lerp_(mean, rate)
            self.variance.lerp_(variance, rate)
        return torch.addcmul(shift, centred * (variance + EPSILON).rsqrt(), ratio)


def orthogonal(num_members: int, rows: int, columns: int) -> Tensor:
    """One orthogonal matrix of gain sqrt(2) per member.

    Args:
        num_members: Members M.
        rows: Inputs.
        columns: Outputs.

    Returns:
        Matrices, shape (M, rows, columns).
    """
    matrices = torch.empty(num_members, rows, columns)
    for matrix in matrices:
        nn.init.orthogonal_(matrix, gain=2.0**0.5)
    return matrices


def _of(parameter: Tensor, members: Tensor | None) -> Tensor:
    return parameter if members is None else parameter[members]


def _at(of_all: Tensor, rows: Rows) -> Tensor:
    return of_all if rows is None else of_all.index_select(0, rows)  # several times as fast as indexing


def _layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of (M, B, H) with a weight and a bias (M, 1, H)."""
    return torch.addcmul(bias, nn.functional.layer_norm(h, h.shape[-1:], eps=EPSILON), weight)


def _member_norm(h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Pullback]:
    """Layer norm of (R, H) with a weight and a bias (H,)."""
    output, kept = normalised(h, weight, bias)

    def gradient_at_input(gradient: Tensor, rows: Rows) -> Tensor:
        there = Normalisation(*(_at(of_all, rows) for of_all in kept))
        return normalised_gradient(gradient.to(output.dtype), there, weight, bias)

    return output, gradient_at_input


def _rectified(h: Tensor) -> tuple[Tensor, Pullback]:
    """Rectified linear units, in place."""
    output = h.relu_()

    def gradient_at_input(gradient: Tensor, rows: Rows) -> Tensor:
        # One pass, without a mask in memory.
        return torch.ops.aten.threshold_backward(gradient.to(output.dtype), _at(output, rows), 0)

    return output, gradient_at_input
