"""The network of a Gaussian policy."""

import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.nets import GaussianArchitecture
from tests.oracles import normal

B, S, A = 4, 5, 2


@pytest.mark.parametrize(("low", "high"), [(-5.0, 2.0), (-1.0, -0.5)])
def test_log_standard_deviation_fills_its_bounds_and_never_leaves_them(low, high) -> None:
    network = GaussianArchitecture(16, log_std_min=low, log_std_max=high).build(S, A).double()
    with torch.no_grad():
        network.to_moments.weight.mul_(100.0)
    log_std = network(10.0 * normal(400, S, seed=1))[1]
    assert log_std.min() >= low
    assert log_std.max() <= high
    assert log_std.min() < low + 0.01 * (high - low)
    assert log_std.max() > high - 0.01 * (high - low)
    with torch.no_grad():
        network.to_moments.weight.zero_()
        network.to_moments.bias.zero_()
    torch.testing.assert_close(network(normal(B, S, seed=1))[1], torch.full((B, A), 0.5 * (low + high)).double())


@pytest.mark.parametrize("layers", [1, 3])
def test_layers_are_as_many_as_stated(layers) -> None:
    assert len(GaussianArchitecture(16, layers).build(S, A).layers) == layers


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_dim": 0}, ["hidden_dim must be at least 1, got 0"]),
        ({"num_layers": 0}, ["num_layers must be at least 1, got 0"]),
        ({"log_std_min": 1.0, "log_std_max": 1.0}, ["log_std_min < log_std_max", "1.0"]),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused_by_name_and_value(options, words) -> None:
    with pytest.raises(UserError) as caught:
        GaussianArchitecture(**options)
    assert all(word in str(caught.value) for word in words)
