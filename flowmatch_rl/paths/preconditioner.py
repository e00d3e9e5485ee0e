"""Scaling of a network's input and output, so that its first predictions are about right."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.types import Prediction


@dataclass(frozen=True)
class Preconditioner:
    """Wraps a network so that its input and output have unit variance.

    Args:
        path: Probability path.
        prediction: Kind of prediction of the wrapped network.
        scales: Whether the network takes x_t scaled to unit variance, and its output is multiplied by the root mean
            square of the target; both for data of unit variance. Variance-exploding paths need it.
        guesses: Whether the network predicts the deviation from the prediction that is exact for standard normal
            data. Without it a noise prediction that starts near zero implies data equal to the noise divided by a
            small number.
    """

    path: AffinePath
    prediction: Prediction
    scales: bool = False
    guesses: bool = False

    def complete(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Prediction made from the output of a network.

        Args:
            network: Called as ``network(x, t, condition, duration)``, the last of which may be left out.

        Returns:
            Function of the same arguments, with values of the shape of x.
        """
        if not (self.scales or self.guesses):
            return network

        def predict(x: Tensor, t: Tensor, condition: Tensor | None = None, *duration: Tensor | None) -> Tensor:
            times = append_dims(t, like=x)
            scaled = self.path.input_scale(times) * x if self.scales else x
            output = network(scaled, t, condition, *duration)
            if self.scales:
                output = self.path.output_scale(times, self.prediction) * output
            if not self.guesses:
                return output
            return torch.addcmul(output, self.path.normal_guess(times, self.prediction), x)

        return predict
