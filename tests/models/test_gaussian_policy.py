"""The squashed Gaussian policy against torch's distributions."""

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from flowmatch_rl.models import GaussianArchitecture, GaussianPolicy
from flowmatch_rl.paths import NoSquash, TanhSquash
from tests.oracles import normal

B, N, S, A = 4, 3, 5, 2


def build(squash=TanhSquash(), **options) -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(GaussianArchitecture(**{"hidden_dim": 16} | options), S, A, squash).double()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_log_density_is_that_of_the_transformed_normal(activation) -> None:
    policy = build(activation=activation)
    observation, noise = normal(B, S, seed=1), normal(B, A, seed=2)
    latent, log_prob = policy.sample_with_log_prob(observation, noise)
    mean, log_std = policy(observation)
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
    mean, log_std = policy(observation)
    point = mean + log_std.exp() * noise
    density = Normal(mean, log_std.exp()).log_prob(point) - torch.log1p(-point.tanh().square())
    wanted = torch.autograd.grad((weight * point).sum() + density.sum(), list(policy.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
        assert one.abs().max() > 0.0


def test_particles_share_the_state_and_no_noise_gives_the_mode() -> None:
    policy = build()
    observation, noise = normal(B, S, seed=1), normal(B, N, A, seed=2)
    mean, log_std = policy(observation)
    latents = policy.sample_latents(observation, noise)
    torch.testing.assert_close(latents, mean[:, None] + log_std.exp()[:, None] * noise)
    torch.testing.assert_close(policy.sample_latents(observation, 0.0 * noise), mean[:, None].expand(-1, N, -1))
    assert not latents.requires_grad
    times, points = policy.trajectories(observation, noise)
    assert times.tolist() == [0.0, 1.0]
    torch.testing.assert_close(points, torch.stack([noise, latents]))


@pytest.mark.parametrize(("low", "high"), [(-5.0, 2.0), (-1.0, -0.5)])
def test_log_standard_deviation_fills_its_bounds_and_never_leaves_them(low, high) -> None:
    policy = build(log_std_min=low, log_std_max=high)
    with torch.no_grad():
        policy.to_moments.weight.mul_(100.0)
    log_std = policy(10.0 * normal(400, S, seed=1))[1]
    assert log_std.min() >= low
    assert log_std.max() <= high
    assert log_std.min() < low + 0.01 * (high - low)
    assert log_std.max() > high - 0.01 * (high - low)
    with torch.no_grad():
        policy.to_moments.weight.zero_()
        policy.to_moments.bias.zero_()
    torch.testing.assert_close(policy(normal(B, S, seed=1))[1], torch.full((B, A), 0.5 * (low + high)).double())


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_are_as_many_as_stated(layers) -> None:
    assert len(build(num_layers=layers).layers) == layers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_dim": 0}, ["hidden_dim", "at least 1", "hidden_dim=0"]),
        ({"num_layers": 0}, ["num_layers", "at least 1", "num_layers=0"]),
        ({"log_std_min": 1.0, "log_std_max": 1.0}, ["log_std_min < log_std_max", "1.0"]),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused_by_name_and_value(options, words) -> None:
    with pytest.raises(ValueError) as caught:
        GaussianArchitecture(**options)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("observation", "noise"), [((1, S), (B, N, A)), ((B, S), (B, A)), ((B, 1, S), (B, N, A))])
def test_particles_of_other_shapes_raise(observation, noise) -> None:
    with pytest.raises(ValueError, match="expected"):
        build().sample_latents(normal(*observation, seed=1), normal(*noise, seed=2))
    with pytest.raises(ValueError, match="noise"):
        build().sample_with_log_prob(normal(B, S, seed=1), normal(B, N, seed=2))
