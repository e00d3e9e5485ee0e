"""Latent intentions, which tell apart the policies that made a data set."""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from flowmatch_rl.checks import check_range, check_word
from flowmatch_rl.nets import GaussianArchitecture, GaussianNetwork
from flowmatch_rl.objectives import Term


@dataclass(frozen=True)
class Intentions:
    """How the policies behind a data set are told apart, where it does not name them.

    A latent z is inferred from a state and the action taken there, and is an input of the occupancy in the place of the
    embedding of a family. Given z the occupancy is that of the policy ``behaviour(a | s) p(z | s, a) / p(z | s)``: of
    the actions in the data that agree with z.

    Args:
        latent_dim: Dimension Z of the latent, at least 1.
        kl_weight: Weight, at least 0, of the Kullback-Leibler divergence of the inferred distributions from the prior
            N(0, I), in nats, beside the loss of the flow.
        term: Term of the loss whose gradient trains the encoder, beside the divergence. Given the ``bootstrap`` term a
            latent learns to tell what the next state and action say about the future. The ``direct`` one, which the
            public code of InFOM takes, rewards no such thing: its target is the next state itself, which a latent may
            copy, or the current state, which needs no latent.
        architecture: Shape of the encoder.

    Raises:
        UserError: If a number is out of its range, or a word is unknown.

    Reference:
        Zheng et al., Intention-Conditioned Flow Occupancy Models, arXiv:2506.08902.
    """

    latent_dim: int = 8
    kl_weight: float = 0.03
    term: Term = "bootstrap"
    architecture: GaussianArchitecture = GaussianArchitecture(activation="gelu")

    def __post_init__(self) -> None:
        check_range("[1, inf)", latent_dim=self.latent_dim)
        check_range("[0, inf)", kl_weight=self.kl_weight)
        check_word(get_args(Term), term=self.term)

    def build(self, observation_dim: int, action_dim: int) -> "IntentionEncoder":
        """Build the encoder.

        Args:
            observation_dim: Dimension S of the state.
            action_dim: Dimension A of the action.
        """
        return IntentionEncoder(self.architecture.build(observation_dim + action_dim, self.latent_dim), self.latent_dim)


class IntentionEncoder(nn.Module):
    """The distribution p(z | s, a) of the latent behind an action, a Gaussian with independent entries.

    Args:
        network: Maps states and actions, side by side, to mean and log standard deviation.
        latent_dim: Dimension Z of the latent.
    """

    def __init__(self, network: GaussianNetwork, latent_dim: int) -> None:
        super().__init__()
        self.network, self.latent_dim = network, latent_dim

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent.

        Args:
            observation: Standardised states, shape (*batch, S).
            action: Actions in [-1, 1], shape (*batch, A).

        Returns:
            Both of shape (*batch, Z).
        """
        return self.network(torch.cat([observation, action], -1))
