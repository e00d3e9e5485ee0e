"""Objectives that teach a network to carry a source to data: conditional flow matching and mean flow."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from flowmatch_rl.objectives.weights import ErrorOf, TimeWeight
from flowmatch_rl.paths import AffinePath, TimeDistribution, UniformTime, UShapedTime
from flowmatch_rl.shapes import append_dims, check_same_shape
from flowmatch_rl.types import Prediction, Velocity

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""A network called as ``network(x, t, condition, duration)``; one that knows no durations is given None."""


def flow_matching_loss(
    predict: Velocity,
    path: AffinePath,
    x_0: Tensor,
    x_1: Tensor,
    t: Tensor,
    condition: Tensor | None = None,
    prediction: Prediction = "velocity",
) -> Tensor:
    """Squared error between what a network predicts at x_t and its value given both ends of the path.

    Averaged over noise, data and time, its gradient equals that of the error against the marginal velocity (data,
    noise, score), which cannot be evaluated.

    Args:
        predict: Network, called as ``predict(x, t, condition)``.
        path: Probability path from noise at t = 0 to data at t = 1.
        x_0: Noise, shape (B, *event).
        x_1: Data, shape (B, *event).
        t: Flow time in [0, 1], shape (B,).
        condition: Context, shape (B, C), or None.
        prediction: What the network predicts.

    Returns:
        Loss per sample, mean over event dimensions, shape (B,).

    Raises:
        ValueError: If x_0, x_1 and the prediction differ in shape, or the shape of t is not a prefix of it.

    Reference:
        Lipman et al., arXiv:2210.02747, Theorem 2.
    """
    predicted = predict(path.sample(x_0, x_1, t), t, condition)
    target = path.target(prediction, x_0, x_1, t)
    check_same_shape(predicted=predicted, target=target)
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
    with torch.no_grad():
        one = torch.ones_like(t)
        # Expanded tensors have no room for the derivative.
        point = (x_t.contiguous(), t.contiguous(), duration.contiguous())
        _, derivative = torch.func.jvp(average_velocity, point, (v_t, one, -one))[:2]
        return v_t + append_dims(duration, like=x_t) * derivative


@dataclass(frozen=True)
class FlowObjective(abc.ABC):
    """What a flow's network predicts, and the loss that teaches it."""

    @property
    @abc.abstractmethod
    def predicts(self) -> Prediction:
        """What the network predicts for an interval of no length."""

    @property
    @abc.abstractmethod
    def uses_duration(self) -> bool:
        """Whether the network is told an interval's duration and predicts the average velocity over it."""

    @property
    @abc.abstractmethod
    def num_uniforms(self) -> int:
        """Uniform numbers per sample that ``loss`` takes."""

    @abc.abstractmethod
    def times(self, uniform: Tensor, t_min: float) -> Tensor:
        """Flow times of the points that ``loss`` evaluates the network at.

        Args:
            uniform: As in ``loss``.
            t_min: As in ``loss``.

        Returns:
            Flow times, shape (B,).
        """

    @abc.abstractmethod
    def loss(
        self,
        network: Network,
        path: AffinePath,
        x_0: Tensor,
        x_1: Tensor,
        uniform: Tensor,
        t_min: float,
        condition: Tensor | None,
    ) -> Tensor:
        """Weighted loss.

        The ends may be posterior means of those given a point x_t, since they too lie on a path through it; the
        network then learns the marginal prediction at once.

        Args:
            network: Called as ``network(x, t, condition, duration)``.
            path: Path from x_0 to x_1.
            x_0: Noise, shape (B, D).
            x_1: Data, shape (B, D).
            uniform: Uniform noise in [0, 1) that the flow times are made of, shape (num_uniforms, B).
            t_min: Flow times lie in [t_min, 1 - t_min]; in [0, 0.5).
            condition: Context, shape (B, C), or None.

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
        time_distribution: Law of the flow times.
        time_weight: Weight of the squared error by flow time; where None, the error of a score is measured as an
            error of the noise, which keeps it finite where the noise vanishes, and any other as it is.

    Reference:
        Lipman et al., arXiv:2210.02747; Ho et al., arXiv:2006.11239, for noise; Song et al., arXiv:2011.13456, for
        the score and its weight.
    """

    prediction: Prediction = "velocity"
    time_distribution: TimeDistribution = UniformTime()
    time_weight: TimeWeight | None = None

    @property
    def predicts(self) -> Prediction:
        """What the network predicts."""
        return self.prediction

    @property
    def uses_duration(self) -> bool:
        """The network knows no durations."""
        return False

    @property
    def num_uniforms(self) -> int:
        """One per flow time."""
        return 1

    def times(self, uniform: Tensor, t_min: float) -> Tensor:
        """Flow times (B,) of the points."""
        return _flow_times(self.time_distribution, uniform[0], t_min)

    def loss(
        self,
        network: Network,
        path: AffinePath,
        x_0: Tensor,
        x_1: Tensor,
        uniform: Tensor,
        t_min: float,
        condition: Tensor | None,
    ) -> Tensor:
        """Weighted squared error per sample, mean over dimensions, shape (B,)."""
        t = self.times(uniform, t_min)

        def predict(x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
            return network(x, time, context, None)

        error = flow_matching_loss(predict, path, x_0, x_1, t, condition, self.prediction)
        weight = self.time_weight or (ErrorOf("noise") if self.prediction == "score" else None)
        return error if weight is None else weight.weight(path, t, self.prediction) * error


@dataclass(frozen=True)
class MeanFlow(FlowObjective):
    """Average velocities, so that one network evaluation carries noise to data.

    Of each batch a share learns the average velocity over an interval, by the identity that ties it to its own
    derivative, and the rest the velocity of the moment. At the default share an update costs about a third more than
    one of conditional flow matching; its targets contain the network's own derivative, so that training is noisier, and
    a single step is less accurate than many steps of a velocity. The derivative with respect to time grows with the
    network's highest time frequency: keep that low.

    Args:
        interval_share: Share of each batch that learns intervals, in (0, 1].
        time_distribution: Law of both ends of an interval, sorted. One that likes both ends of the path practises the
            single step from noise to data.
        adaptive_power: Power p of the weight ``(error + 0.001) ** -p``, which keeps rare large errors from ruling the
            gradient; 0 for the plain squared error. The paper has 1, which did worse in trials in the plane.

    Raises:
        ValueError: If a number is out of its range.

    Reference:
        Geng et al., arXiv:2505.13447.
    """

    interval_share: float = 0.5
    time_distribution: TimeDistribution = UShapedTime(sharpness=4.0)
    adaptive_power: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.interval_share <= 1.0:
            raise ValueError(f"interval_share must lie in (0, 1], got {self.interval_share}")
        if not self.adaptive_power >= 0.0:
            raise ValueError(f"adaptive_power must be at least 0, got {self.adaptive_power}")

    @property
    def predicts(self) -> Prediction:
        """The velocity of the moment is the average over an interval of no length."""
        return "velocity"

    @property
    def uses_duration(self) -> bool:
        """The network is told the duration."""
        return True

    @property
    def num_uniforms(self) -> int:
        """One per end of the interval."""
        return 2

    def times(self, uniform: Tensor, t_min: float) -> Tensor:
        """Flow times (B,) of the points: where an interval begins."""
        ends, count = _flow_times(self.time_distribution, uniform, t_min), self._num_intervals(uniform)
        return torch.cat([ends[:, :count].amin(0), ends[0, count:]])

    def loss(
        self,
        network: Network,
        path: AffinePath,
        x_0: Tensor,
        x_1: Tensor,
        uniform: Tensor,
        t_min: float,
        condition: Tensor | None,
    ) -> Tensor:
        """Adaptively weighted squared error per sample, shape (B,)."""
        t, count = self.times(uniform, t_min), self._num_intervals(uniform)
        ends = _flow_times(self.time_distribution, uniform, t_min)
        duration = torch.zeros_like(t)
        duration[:count] = (ends[0, :count] - ends[1, :count]).abs()
        x_t, target = path.sample(x_0, x_1, t), path.conditional_velocity(x_0, x_1, t)
        context = None if condition is None else condition[:count]

        def average_velocity(x: Tensor, time: Tensor, length: Tensor) -> Tensor:
            return network(x, time, context, length)

        intervals = mean_flow_target(average_velocity, x_t[:count], target[:count], t[:count], duration[:count])
        target = torch.cat([intervals, target[count:]])
        error = (network(x_t, t, condition, duration) - target).square().mean(-1)
        return error if self.adaptive_power == 0.0 else error * (error.detach() + 1e-3) ** -self.adaptive_power

    def _num_intervals(self, uniform: Tensor) -> int:
        """How many of the first rows learn intervals: the order of a batch carries no meaning."""
        return max(1, round(self.interval_share * uniform.shape[1]))


def _flow_times(distribution: TimeDistribution, uniform: Tensor, t_min: float) -> Tensor:
    t = distribution.quantile(uniform)
    return t if t_min == 0.0 else t_min + (1.0 - 2.0 * t_min) * t
