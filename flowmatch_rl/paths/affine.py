"""Affine probability paths and the exact conversions between what a network may predict along them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmatch_rl.paths.schedules import LinearSchedule, Schedule
from flowmatch_rl.shapes import append_dims, check_same_shape
from flowmatch_rl.types import Prediction


@dataclass(frozen=True)
class AffinePath:
    """The path ``x_t = alpha_t x_1 + sigma_t x_0`` from noise at t = 0 to data at t = 1.

    Velocity, data, noise and score are all linear in the posterior means of x_0 and x_1 given x_t,
    so that any of them follows exactly from x_t and any other one.

    Args:
        schedule: Coefficients alpha_t and sigma_t.
    """

    schedule: Schedule = field(default_factory=LinearSchedule)

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """Point on the path.

        Args:
            x_0: Noise, shape (*batch, *event).
            x_1: Data, shape (*batch, *event).
            t: Flow time in [0, 1], shape (*batch).

        Returns:
            x_t, shape (*batch, *event).

        Raises:
            ValueError: If x_0 and x_1 differ in shape, or the shape of t is not a prefix of it.
        """
        check_same_shape(x_0=x_0, x_1=x_1)
        t = append_dims(t, like=x_1)
        return self.schedule.alpha(t) * x_1 + self.schedule.sigma(t) * x_0

    def conditional_velocity(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """Velocity of the path through a given pair (x_0, x_1), ``d_alpha x_1 + d_sigma x_0``.

        With posterior means in place of the pair this is the marginal velocity.

        Args:
            x_0: Noise, shape (*batch, *event).
            x_1: Data, shape (*batch, *event).
            t: Flow time in [0, 1], shape (*batch).

        Returns:
            Velocity, shape (*batch, *event).

        Raises:
            ValueError: If x_0 and x_1 differ in shape, or the shape of t is not a prefix of it.
        """
        check_same_shape(x_0=x_0, x_1=x_1)
        t = append_dims(t, like=x_1)
        return self.schedule.d_alpha(t) * x_1 + self.schedule.d_sigma(t) * x_0

    def convert(self, value: Tensor, x_t: Tensor, t: Tensor, source: Prediction, target: Prediction) -> Tensor:
        """Convert a prediction at x_t to another kind of prediction.

        Each prediction is a linear functional of (x_0, x_1); with x_t itself, a source determines every target.
        The formula divides by zero where x_t alone determines the source: data at t = 1 and noise or score
        at t = 0 (for a path that ends in pure data and starts in pure noise).

        Args:
            value: Predicted velocity, data, noise or score at x_t, shape (*batch, *event).
            x_t: Point on the path, shape (*batch, *event).
            t: Flow time in [0, 1], shape (*batch).
            source: Kind of prediction that ``value`` is.
            target: Kind of prediction to return.

        Returns:
            The converted prediction, shape (*batch, *event).

        Raises:
            ValueError: If ``value`` and ``x_t`` differ in shape, or the shape of t is not a prefix of it.
        """
        check_same_shape(value=value, x_t=x_t)
        t = append_dims(t, like=x_t)
        if source == target:
            return value
        of_point, of_value = self.conversion(t, source, target)
        return of_point * x_t + of_value * value

    def conversion(self, t: Tensor, source: Prediction, target: Prediction) -> tuple[Tensor, Tensor]:
        """Coefficients (a, b) of the conversion ``target = a x_t + b source``.

        An error of the source is an error of the target |b| times as large.

        Args:
            t: Flow time in [0, 1], any shape.
            source: Kind of the known prediction.
            target: Kind of the prediction to compute.

        Returns:
            a and b, both of the shape of t; infinite where the formula divides by zero, see ``convert``.
        """
        if source == target:
            return torch.zeros_like(t), torch.ones_like(t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        # The score is the noise over -sigma: taken as noise it stays usable where sigma is 0.
        if source == "score":
            of_point, of_value = self.conversion(t, "noise", target)
            return of_point, -sigma * of_value
        if target == "score":
            of_point, of_value = self.conversion(t, source, "noise")
            return of_point / -sigma, of_value / -sigma
        (f_0, f_1), (g_0, g_1) = self._functional(source, t), self._functional(target, t)
        determinant = sigma * f_1 - alpha * f_0
        return (g_0 * f_1 - g_1 * f_0) / determinant, (sigma * g_1 - alpha * g_0) / determinant

    def target(self, prediction: Prediction, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """Regression target of a network that predicts ``prediction``.

        Args:
            prediction: Kind of prediction of the network.
            x_0: Noise, shape (*batch, *event); standard normal and independent of x_1 where the score is predicted.
            x_1: Data, shape (*batch, *event).
            t: Flow time in [0, 1], shape (*batch).

        Returns:
            Regression target, shape (*batch, *event).

        Raises:
            ValueError: If x_0 and x_1 differ in shape, the shape of t is not a prefix of it, or the prediction is
                unknown.
        """
        check_same_shape(x_0=x_0, x_1=x_1)
        match prediction:
            case "velocity":
                return self.conditional_velocity(x_0, x_1, t)
            case "data":
                return x_1
            case "noise":
                return x_0
            case "score":
                return -x_0 / self.schedule.sigma(append_dims(t, like=x_0))
            case _:
                raise ValueError(f"expected velocity, data, noise or score, got {prediction!r}")

    def input_scale(self, t: Tensor) -> Tensor:
        """Factor that scales x_t to unit variance if noise and data have unit variance, shape of t."""
        return (self.schedule.alpha(t).square() + self.schedule.sigma(t).square()).rsqrt()

    def output_scale(self, t: Tensor, prediction: Prediction) -> Tensor:
        """Root mean square of a prediction's target if noise and data are independent and have unit variance.

        Args:
            t: Flow time in [0, 1], any shape.
            prediction: Kind of prediction.

        Returns:
            Scale, shape of t.
        """
        match prediction:
            case "velocity":
                return (self.schedule.d_alpha(t).square() + self.schedule.d_sigma(t).square()).sqrt()
            case "score":
                return self.schedule.sigma(t).reciprocal()
            case _:
                return torch.ones_like(t)

    def normal_guess(self, t: Tensor, prediction: Prediction) -> Tensor:
        """Coefficient c of the prediction ``c x_t`` that is exact if data and noise are standard normal.

        Args:
            t: Flow time in [0, 1], any shape.
            prediction: Kind of prediction.

        Returns:
            Coefficient, shape of t.
        """
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        variance = alpha.square() + sigma.square()
        if prediction == "score":
            return -variance.reciprocal()
        of_noise, of_data = self._functional(prediction, t)
        return (of_noise * sigma + of_data * alpha) / variance

    def diffusion(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient g^2 of the path as a diffusion, ``2 sigma^2 d/dt log(alpha / sigma)``.

        The stochastic process with drift ``velocity + g^2 score / 2`` and diffusion g has the marginals of the path.

        Args:
            t: Flow time in (0, 1], any shape.

        Returns:
            g^2 per unit of flow time, shape of t; infinite where alpha is 0.

        Reference:
            Song et al., arXiv:2011.13456, for diffusion time 1 - t.
        """
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return 2.0 * (sigma.square() * self.schedule.d_alpha(t) / alpha - sigma * self.schedule.d_sigma(t))

    def _functional(self, prediction: Prediction, t: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients (c_0, c_1) of the prediction ``c_0 x_0 + c_1 x_1``."""
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        match prediction:
            case "velocity":
                return self.schedule.d_sigma(t), self.schedule.d_alpha(t)
            case "data":
                return zero, one
            case "noise":
                return one, zero
            case _:
                raise ValueError(f"expected velocity, data, noise or score, got {prediction!r}")
