"""The unit that the outputs of critics are in."""

import torch
from torch import Tensor, nn


class ReturnUnit(nn.Module):
    """Return that an output of 1 of a critic stands for; several critics share one instance.

    It is a power of two, so that a change of unit rounds nothing.
    """

    size: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()))
