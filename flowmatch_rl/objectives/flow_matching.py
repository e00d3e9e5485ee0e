"""Objectives that train a network to carry a source to data: conditional flow matching and mean flow."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from flowmatch_rl.checks import check_range
from flowmatch_rl.objectives.weights import ErrorOf, TimeWeight
from flowmatch_rl.paths import AffinePath, PathPoints, TimeDistribution, UniformTime, UShapedTime
from flowmatch_rl.shapes import append_dims, check_same_shape
from flowmatch_rl.types import Prediction, Velocity

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""A network called as ``network(x, t, condition, duration)``; one without durations receives None."""

Derivative: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Derivative of the average velocity (B, D) along the flow, the end of the interval held fixed, called as
``derivative(x, velocity, t, duration, condition)``."""


def flow_matching_loss(
    predict: Velocity,
    path: AffinePath,
    points: PathPoints,
    condition: Tensor | None = None,
    prediction: Prediction = "velocity",
) -> Tensor:
    """Squared error between a network's prediction at x_t and its value given the pair of endpoints.

    Averaged over noise, data and time, its gradient equals that of the error against the marginal velocity (data,
    noise, score), which cannot be evaluated. The pair may also be the posterior means given x_t, whose path passes
    through the same points: the network then regresses on the marginal prediction itself (reverse flow matching).

    Args:
        predict: Network, called as ``predict(x, t, condition)``.
        path: Probability path from noise at t = 0 to data at t = 1.
        points: Points of the path, x_t of shape (B, *event) and t of shape (B,).
        condition: Context, shape (B, C), or None.
        prediction: What the network predicts.

    Returns:
        Loss per sample, mean over event dimensions, shape (B,).

    Raises:
        ValueError: If target and prediction differ in shape, or the shape of t is not a prefix of it.

    Reference:
        Lipman et al., arXiv:2210.02747, Theorem 2; Li et al., arXiv:2601.08136, for posterior means.
    """
    predicted = predict(points.x_t, points.t, condition)
    target = points.target(path, prediction)
    check_same_shape(x_t=points.x_t, predicted=predicted, target=target)
    error = mse_loss(predicted, target, reduction="none")
    return (error.flatten(1) if error.dim() > 2 else error).mean(1)


def mean_flow_target(
    average_velocity: Callable[[Tensor, Tensor, Tensor], Tensor], x_t: Tensor, v_t: Tensor, t: Tensor, duration: Tensor
) -> Tensor:
    """Target of the average velocity over ``[t, t + duration]``, ``v_t + duration du/dt``.

    Differentiating ``duration u = int v`` along the flow with its end held fixed gives this identity; the total
    derivative is one forward-mode pass.

    Args:
        average_velocity: The network at its present weights, called as ``average_velocity(x, t, duration)``.
        x_t: Points on the path, shape (B, D).
        v_t: Velocity there, conditional or marginal, shape (B, D).
        t: Flow time, shape (B,).
        duration: Length of the interval, at least 0, shape (B,).

    Returns:
        Target without gradient, shape (B, D).

    Reference:
        Geng et al., arXiv:2505.13447; there time runs from data to noise.
    """
    return _target(v_t, duration, derivative_along_flow(average_velocity, x_t, v_t, t, duration))


@torch.no_grad()
def derivative_along_flow(
    average_velocity: Callable[[Tensor, Tensor, Tensor], Tensor], x_t: Tensor, v_t: Tensor, t: Tensor, duration: Tensor
) -> Tensor:
    """Total derivative ``du/dt`` of an average velocity by a forward-mode pass, see ``mean_flow_target``.

    Args:
        average_velocity: Called as ``average_velocity(x, t, duration)``.
        x_t: Points on the path, shape (B, D).
        v_t: Velocity there, shape (B, D).
        t: Flow time, shape (B,).
        duration: Length of the interval, shape (B,).

    Returns:
        Derivative without gradient, shape (B, D).
    """
    one = torch.ones_like(t)
    # Expanded tensors have no room for the derivative.
    point = (x_t.contiguous(), t.contiguous(), duration.contiguous())
    return torch.func.jvp(average_velocity, point, (v_t, one, -one))[1]


@torch.no_grad()
def _target(v_t: Tensor, duration: Tensor, derivative: Tensor) -> Tensor:
    return v_t + append_dims(duration, like=v_t) * derivative


@dataclass(frozen=True)
class FlowObjective(abc.ABC):
    """What a flow's network predicts, and the loss that trains it."""

    uses_duration: ClassVar[bool]
    """Whether the network takes an interval's duration and predicts the average velocity over it."""

    num_uniforms: ClassVar[int]
    """Uniform numbers per sample that ``points`` takes."""

    prediction: Prediction
    """What the network predicts, for an interval of no length."""

    @abc.abstractmethod
    def points(self, path: AffinePath, x_0: Tensor, x_1: Tensor, uniform: Tensor, t_min: float = 0.0) -> PathPoints:
        """Points of the path at which the network is trained.

        Args:
            path: Path from x_0 to x_1.
            x_0: Noise, shape (B, D).
            x_1: Data, shape (B, D).
            uniform: Uniform noise in [0, 1) that the flow times are made of, shape (num_uniforms, B).
            t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5).

        Returns:
            The points.
        """

    @abc.abstractmethod
    def loss(
        self,
        network: Network,
        path: AffinePath,
        points: PathPoints,
        condition: Tensor | None = None,
        derivative: Derivative | None = None,
    ) -> Tensor:
        """Weighted loss.

        The pair of endpoints may be posterior means given x_t; the network then learns the marginal prediction at once.

        Args:
            network: Called as ``network(x, t, condition, duration)``.
            path: Path from x_0 to x_1.
            points: Points of the path, made by ``points``.
            condition: Context, shape (B, C), or None.
            derivative: Derivative of the network along the flow, for objectives that need it; by a forward-mode pass
                through the network if None.

        Returns:
            Loss per sample, shape (B,).
        """


@dataclass(frozen=True)
class ConditionalFlowMatching(FlowObjective):
    """Regression on the velocity, the data, the noise or the score of the path between x_0 and x_1.

    All four have the same minimum, and each follows from any other; they differ in what the network finds easy, and in
    the weight that the loss gives to a flow time.

    Args:
        prediction: What the network predicts.
        time_distribution: Distribution of the flow times.
        time_weight: Weight of the squared error by flow time; where None, the error of a score is measured as an
            error of the noise, which keeps it finite where the noise vanishes, and any other as it is.

    Reference:
        Lipman et al., arXiv:2210.02747; Ho et al., arXiv:2006.11239, for noise; Song et al., arXiv:2011.13456, for
        the score and its weight.
    """

    uses_duration = False
    num_uniforms = 1

    prediction: Prediction = "velocity"
    time_distribution: TimeDistribution = UniformTime()
    time_weight: TimeWeight | None = None

    def points(self, path: AffinePath, x_0: Tensor, x_1: Tensor, uniform: Tensor, t_min: float = 0.0) -> PathPoints:
        """Points at one flow time per sample."""
        return PathPoints.between(path, x_0, x_1, _flow_times(self.time_distribution, uniform[0], t_min))

    def loss(
        self,
        network: Network,
        path: AffinePath,
        points: PathPoints,
        condition: Tensor | None = None,
        derivative: Derivative | None = None,
    ) -> Tensor:
        """Weighted squared error per sample, mean over dimensions, shape (B,)."""

        def predict(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
            return network(x, time, context, None)

        error = flow_matching_loss(predict, path, points, condition, self.prediction)
        weight = self.time_weight or (ErrorOf("noise") if self.prediction == "score" else None)
        return error if weight is None else weight.weight(path, points.t, self.prediction) * error


@dataclass(frozen=True)
class MeanFlow(FlowObjective):
    """Average velocities, so that one network evaluation carries noise to data.

    A fraction of each batch learns the average velocity over an interval, by the identity that ties it to its own
    derivative, and the rest the instantaneous velocity. At the default fraction an update costs about a third more than
    one of conditional flow matching; its targets contain the network's own derivative, so that training is noisier, and
    a single step is less accurate than many steps of a velocity. The derivative with respect to time grows with the
    network's highest time frequency: keep that low.

    Args:
        interval_fraction: Fraction of each batch that learns intervals, in (0, 1].
        time_distribution: Distribution of both limits of an interval, sorted. One that favours both limits of the path
            trains the single step from noise to data.
        adaptive_power: Power p of the weight ``(error + 0.001) ** -p``, which keeps rare large errors from ruling the
            gradient; 0 for the plain squared error. The paper has 1, which did worse in trials in the plane.

    Raises:
        ValueError: If a number is out of its range.

    Reference:
        Geng et al., arXiv:2505.13447.
    """

    uses_duration = True
    num_uniforms = 2
    prediction: Prediction = field(default="velocity", init=False, repr=False)

    interval_fraction: float = 0.5
    time_distribution: TimeDistribution = UShapedTime(sharpness=4.0)
    adaptive_power: float = 0.0

    def __post_init__(self) -> None:
        check_range("(0, 1]", interval_fraction=self.interval_fraction)
        check_range("[0, inf)", adaptive_power=self.adaptive_power)

    def points(self, path: AffinePath, x_0: Tensor, x_1: Tensor, uniform: Tensor, t_min: float = 0.0) -> PathPoints:
        """Points where an interval begins, the first rows of the batch, or at a single flow time."""
        pair, count = _flow_times(self.time_distribution, uniform, t_min), self._num_intervals(uniform.shape[1])
        t = torch.cat([pair[:, :count].amin(0), pair[0, count:]])
        duration = torch.zeros_like(t)
        duration[:count] = (pair[0, :count] - pair[1, :count]).abs()
        return PathPoints.between(path, x_0, x_1, t, duration)

    def loss(
        self,
        network: Network,
        path: AffinePath,
        points: PathPoints,
        condition: Tensor | None = None,
        derivative: Derivative | None = None,
    ) -> Tensor:
        """Adaptively weighted squared error per sample, shape (B,)."""
        x_t, t, duration, count = points.x_t, points.t, points.duration, self._num_intervals(len(points.t))
        if duration is None:
            raise ValueError("mean flow needs points with durations, got None")
        target = points.target(path, "velocity")
        context = None if condition is None else condition[:count]

        def average_velocity(x: Tensor, time: Tensor, length: Tensor) -> Tensor:
            return network(x, time, context, length)

        begin = x_t[:count], target[:count], t[:count], duration[:count]
        if derivative is None:
            intervals = mean_flow_target(average_velocity, *begin)
        else:
            intervals = _target(target[:count], duration[:count], derivative(*begin, context))
        target = torch.cat([intervals, target[count:]])
        error = (network(x_t, t, condition, duration) - target).square().mean(-1)
        return error if self.adaptive_power == 0.0 else error * (error.detach() + 1e-3) ** -self.adaptive_power

    def _num_intervals(self, batch: int) -> int:
        """How many of the first rows learn intervals: the order of a batch carries no meaning."""
        return max(1, round(self.interval_fraction * batch))


def _flow_times(distribution: TimeDistribution, uniform: Tensor, t_min: float) -> Tensor:
    t = distribution.quantile(uniform)
    return t if t_min == 0.0 else t_min + (1.0 - 2.0 * t_min) * t
