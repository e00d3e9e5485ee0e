"""The squashed Gaussian policy against torch's distributions."""

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from flowmatch_rl.models import GaussianPolicy, GaussianPolicyArchitecture
from flowmatch_rl.nets import GaussianArchitecture
from flowmatch_rl.paths import NoSquash, TanhSquash
from tests.oracles import normal

B, N, S, A = 4, 3, 5, 2


def build(squash=TanhSquash(), **options) -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicyArchitecture(GaussianArchitecture(**{"hidden_dim": 16} | options), squash).build(S, A).double()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_log_density_is_that_of_the_transformed_normal(activation) -> None:
    policy = build(activation=activation)
    observation, noise = normal(B, S, seed=1), normal(B, A, seed=2)
    latent, log_prob = policy.sample_with_log_prob(observation, noise)
    mean, log_std = policy.network(observation)
    base = Independent(Normal(mean, log_std.exp()), 1)
    law = TransformedDistribution(base, [TanhTransform(cache_size=1)])
    torch.testing.assert_close(latent, mean + log_std.exp() * noise)
    torch.testing.assert_close(log_prob, law.log_prob(latent.tanh()), rtol=1e-6, atol=1e-6)
    plain = build(squash=NoSquash(), activation=activation).sample_with_log_prob(observation, noise)[1]
    torch.testing.assert_close(plain, base.log_prob(latent))


def test_gradient_of_samples_is_that_of_reparameterised_ones() -> None:
    policy = build()
    observation, noise, weight = normal(B, S, seed=1), normal(B, A, seed=2), normal(B, A, seed=3)
    latent, log_prob = policy.sample_with_log_prob(observation, noise)
    found = torch.autograd.grad((weight * latent).sum() + log_prob.sum(), list(policy.parameters()))
    mean, log_std = policy.network(observation)
    point = mean + log_std.exp() * noise
    density = Normal(mean, log_std.exp()).log_prob(point) - torch.log1p(-point.tanh().square())
    wanted = torch.autograd.grad((weight * point).sum() + density.sum(), list(policy.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
        assert one.abs().max() > 0.0


def test_particles_share_the_state_and_no_noise_gives_the_mode() -> None:
    policy = build()
    observation, noise = normal(B, S, seed=1), normal(B, N, A, seed=2)
    mean, log_std = policy.network(observation)
    latents = policy.sample_latents(observation, noise)
    torch.testing.assert_close(latents, mean[:, None] + log_std.exp()[:, None] * noise)
    torch.testing.assert_close(policy.sample_latents(observation, 0.0 * noise), mean[:, None].expand(-1, N, -1))
    assert not latents.requires_grad
    times, points = policy.trajectories(observation, noise)
    assert times.tolist() == [0.0, 1.0]
    torch.testing.assert_close(points, torch.stack([noise, latents]))


@pytest.mark.parametrize(("observation", "noise"), [((1, S), (B, N, A)), ((B, S), (B, A)), ((B, 1, S), (B, N, A))])
def test_particles_of_other_shapes_raise(observation, noise) -> None:
    with pytest.raises(ValueError, match="expected"):
        build().sample_latents(normal(*observation, seed=1), normal(*noise, seed=2))
    with pytest.raises(ValueError, match="noise"):
        build().sample_with_log_prob(normal(B, S, seed=1), normal(B, N, seed=2))


def test_noise_has_one_normal_per_entry_of_the_action() -> None:
    policy = build()
    assert policy.noise_dim == policy.action_dim == A
