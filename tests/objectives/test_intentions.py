"""The divergence of latents from their prior."""

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from flowmatch_rl.objectives import standard_normal_divergence
from tests.oracles import F64, normal


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    mean, log_std = normal(4, 3, 3, seed=1), normal(4, 3, 3, seed=2)
    given = Independent(Normal(mean, log_std.exp()), 1)
    prior = Independent(Normal(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)), 1)
    torch.testing.assert_close(standard_normal_divergence(mean, log_std), kl_divergence(given, prior))


def test_the_prior_is_at_no_distance_from_itself() -> None:
    assert standard_normal_divergence(torch.zeros(2, 5), torch.zeros(2, 5)).eq(0.0).all()


def test_moments_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        standard_normal_divergence(torch.zeros(2, 3), torch.zeros(2, 1))
