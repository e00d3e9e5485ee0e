"""Standardised observations and their waves, in critics and in flows."""

import math

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.nets import CriticArchitecture, ObservationFeatures, VelocityArchitecture

UNITS = ObservationFeatures(mean=(3.0, -1.0), std=(2.0, 0.5), num_frequencies=2)


def test_features_are_standardised_entries_and_waves_of_them() -> None:
    features = UNITS.build(2)(torch.tensor([[5.0, -1.0]]))
    one = [1.0, 0.0]
    sines = [[math.sin(0.5 * math.pi * 2**k * z) for z in one] for k in range(2)]
    cosines = [[math.cos(0.5 * math.pi * 2**k * z) for z in one] for k in range(2)]
    wanted = torch.tensor([one + sines[0] + cosines[0] + sines[1] + cosines[1]])
    torch.testing.assert_close(features, wanted)
    assert features.shape[-1] == UNITS.dimension(2)


def test_without_options_observations_are_left_alone_and_networks_keep_their_weights() -> None:
    observation = torch.randn(5, 2)
    assert torch.equal(ObservationFeatures().build(2)(observation), observation)
    torch.manual_seed(0)
    plain = CriticArchitecture().build(2, 1)
    assert not any("features" in name for name in plain.state_dict())


def test_a_critic_gives_the_same_values_in_other_units() -> None:
    torch.manual_seed(0)
    standard = CriticArchitecture(observations=ObservationFeatures(num_frequencies=2)).build(2, 1)
    scaled = CriticArchitecture(observations=UNITS).build(2, 1)
    scaled.load_state_dict(standard.state_dict())
    z, action = torch.randn(7, 2), torch.randn(7, 1)
    observation = z * torch.tensor(UNITS.std) + torch.tensor(UNITS.mean)
    torch.testing.assert_close(scaled(observation, action), standard(z, action))
    torch.testing.assert_close(
        scaled.action_values(observation, action[:, None]), standard.action_values(z, action[:, None])
    )
    _, gradient = scaled.action_values_and_gradients(observation, action[:, None])
    torch.testing.assert_close(gradient, standard.action_values_and_gradients(z, action[:, None])[1])


def test_a_flow_takes_the_same_condition_in_other_units() -> None:
    torch.manual_seed(0)
    standard = VelocityArchitecture(16, num_frequencies=2).build(3, 2)
    scaled = VelocityArchitecture(16, condition_mean=UNITS.mean, condition_std=UNITS.std, num_frequencies=2).build(3, 2)
    scaled.load_state_dict(standard.state_dict())
    x, t, z = torch.randn(7, 3), torch.rand(7), torch.randn(7, 2)
    condition = z * torch.tensor(UNITS.std) + torch.tensor(UNITS.mean)
    torch.testing.assert_close(scaled(x, t, condition), standard(x, t, z))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mean": (0.0,), "std": ()}, "1 and 0"),
        ({"mean": (0.0,), "std": (0.0,)}, "positive"),
        ({"mean": (math.nan,), "std": (1.0,)}, "finite"),
        ({"num_frequencies": 21}, "num_frequencies"),
    ],
    ids=str,
)
def test_units_that_do_not_fit_are_refused(options, word) -> None:
    with pytest.raises(UserError, match=word):
        ObservationFeatures(**options)


def test_units_of_another_dimension_are_refused() -> None:
    with pytest.raises(UserError, match="3 numbers, one per entry, got 2"):
        UNITS.build(3)
