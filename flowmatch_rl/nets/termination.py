"""A classifier of terminal states."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_HIDDEN_DIM = 128


class TerminationNetwork(nn.Module):
    """The probability that a state is terminal when it is arrived in, learned from transitions.

    It is 0 until a termination is seen. Building it leaves the global random numbers alone.

    Args:
        state_dim: Dimension D of the state.
    """

    seen: Tensor

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.layers = nn.Sequential(
                nn.Linear(state_dim, _HIDDEN_DIM),
                nn.SiLU(),
                nn.Linear(_HIDDEN_DIM, _HIDDEN_DIM),
                nn.SiLU(),
                nn.Linear(_HIDDEN_DIM, 1),
            )
        self.register_buffer("seen", torch.tensor(False))

    def forward(self, state: Tensor) -> Tensor:
        """Logit of the probability, shape (*batch), for standardised states (*batch, D)."""
        return self.layers(state).squeeze(-1)

    def probability(self, state: Tensor) -> Tensor:
        """Probability, shape (*batch), for standardised states (*batch, D)."""
        return self(state).sigmoid() * self.seen

    def loss(self, state: Tensor, terminated: Tensor) -> Tensor:
        """Negative log-likelihood of arrivals, 0 as long as none was terminal.

        Args:
            state: Standardised arrival states, shape (B, D).
            terminated: Whether they are terminal, boolean, shape (B,).

        Returns:
            Loss per sample, nats, shape (B,).
        """
        self.seen |= terminated.any()
        wanted = terminated.to(state.dtype)
        return functional.binary_cross_entropy_with_logits(self(state), wanted, reduction="none") * self.seen
