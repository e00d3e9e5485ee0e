"""What a network is asked for, so that at its start it answers about right."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.shapes import append_dims
from flowmatch_rl.types import Prediction


@dataclass(frozen=True)
class Preconditioner:
    """Wraps a network so that it sees points, and answers, in convenient units.

    Args:
        path: The path.
        prediction: What the whole predicts.
        scales: Whether the network sees x_t at unit variance and answers in units of what is predicted; both for data
            of unit variance. Paths that explode want it.
        guesses: Whether the network answers with the deviation from what is exact for standard normal data. Without
            it a network of the noise that begins near zero stands for data that is the noise divided by a small
            number.
    """

    path: AffinePath
    prediction: Prediction
    scales: bool = False
    guesses: bool = False

    def complete(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The prediction that a network stands for.

        Args:
            network: Called as ``network(x, t, condition, duration)``, the last of which may be left out.

        Returns:
            Function of the same arguments, with values of the shape of x.
        """
        if not (self.scales or self.guesses):
            return network

        def predict(x: Tensor, t: Tensor, condition: Tensor | None = None, *duration: Tensor | None) -> Tensor:
            times = append_dims(t, like=x)
            seen = self.path.input_scale(times) * x if self.scales else x
            answer = network(seen, t, condition, *duration)
            if self.scales:
                answer = self.path.output_scale(times, self.prediction) * answer
            if not self.guesses:
                return answer
            return torch.addcmul(answer, self.path.normal_guess(times, self.prediction), x)

        return predict
