"""The factored FiLM network against one written with joined inputs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from flowmatch_rl.nets import FilmUNet, FilmUNetArchitecture
from tests.combinations import each_value, one_test

B, K, D, C = 4, 3, 2, 5
SIZES = {"time_features": 8, "time_dims": (8, 6), "condition_dims": (10, 7)}


def build(block_dims: tuple[int, ...] = (16, 12, 12), condition_dim: int = C, **options) -> FilmUNet:
    torch.manual_seed(0)
    network = FilmUNetArchitecture(block_dims, **SIZES | options).build(D, condition_dim).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


def joined(network: FilmUNet, x: Tensor, t: Tensor, condition: Tensor, activation) -> Tensor:
    """The network for one row per time and condition: joint encodings and joint maps of a layer and its skip."""

    def encode(layers, code: Tensor) -> Tensor:
        for layer in layers:
            code = activation(functional.linear(code, layer.weight, layer.bias))
        return code

    code = torch.cat(
        [
            encode(network.encode_time.layers, network.embed_time(t)),
            encode(network.encode_condition.layers, condition),
        ],
        -1,
    )
    weight = torch.cat([network.film_of_time.weight, network.film_of_condition.weight], 1)
    film = functional.linear(code, weight, network.film_bias)

    def block(h: Tensor) -> Tensor:
        nonlocal film
        width = h.shape[-1]
        scale, shift, film = film[..., :width], film[..., width : 2 * width], film[..., 2 * width :]
        centred = h - h.mean(-1, keepdim=True)
        normalised = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return activation((1.0 + scale) * normalised + shift)

    h, skips = network.from_sample(x), []
    for layer in network.down:
        skips.append(h)
        h = block(h) @ layer.weight.T + (h if layer.weight.shape[0] == layer.weight.shape[1] else 0.0)
    for layer, skip in zip(network.up, network.skip, strict=True):
        both = torch.cat([block(h), skips.pop()], -1) @ torch.cat([layer.weight, skip.weight], 1).T
        h = both + (h if layer.weight.shape[0] == layer.weight.shape[1] else 0.0)
    velocity = network.to_velocity(block(h))
    assert film.shape[-1] == 0
    return velocity


@each_value
@pytest.mark.parametrize("block_dims", [(16,), (8, 8), (64, 32, 16), (4, 8, 8)], ids=str)
@pytest.mark.parametrize(
    ("name", "activation"), [("mish", functional.mish), ("silu", functional.silu), ("relu", functional.relu)]
)
def test_sums_of_maps_equal_maps_of_joined_inputs(block_dims, name, activation) -> None:
    network = build(block_dims, activation=name)
    x, t, condition = torch.randn(B, D).double(), torch.rand(B).double(), torch.randn(B, C).double()
    torch.testing.assert_close(network(x, t, condition), joined(network, x, t, condition, activation))


def test_blocks_scale_by_one_and_shift_by_zero_at_first() -> None:
    torch.manual_seed(0)
    network = FilmUNetArchitecture((16, 8), **SIZES).build(D, C).double()
    x, t, condition = torch.randn(B, D).double(), torch.rand(B).double(), torch.randn(B, C).double()
    assert network(x, t, condition).abs().max() == 0.0
    torch.nn.init.normal_(network.to_velocity.weight)
    first = network(x, t, condition)
    assert first.abs().min() > 0.0
    torch.testing.assert_close(first, network(x, 1.0 - t, condition + 1.0), rtol=0, atol=0)
    torch.testing.assert_close(first, joined(network, x, t, condition, functional.mish))


def test_the_conditions_part_is_computed_once_for_all_evaluations_of_a_bound_field() -> None:
    network, calls = build(), []
    network.encode_condition.register_forward_hook(lambda *_: calls.append(1))
    field = network.bind(torch.randn(B, 1, C).double())
    for t in (0.1, 0.5, 0.9):
        field(torch.randn(B, K, D).double(), torch.tensor(t).double(), None)
    assert len(calls) == 1


@pytest.mark.parametrize(("time", "rows"), [((), 1), ((B,), B), ((B, K), B * K)], ids=str)
def test_a_time_shared_by_rows_is_encoded_once(time, rows) -> None:
    network, seen = build(), []
    network.encode_time.register_forward_hook(lambda _, __, code: seen.append(code[..., 0].numel()))
    network(torch.randn(B, K, D).double(), torch.rand(time).double(), torch.randn(B, 1, C).double())
    assert seen == [rows]


def test_the_times_features_reach_the_highest_frequency_stated_and_no_further() -> None:
    network = build(max_frequency=30.0)
    frequencies = network.embed_time.frequencies
    torch.testing.assert_close(frequencies.max(), torch.tensor(30.0).double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(frequencies.min(), torch.tensor(1.0).double(), rtol=1e-6, atol=0.0)


@one_test
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_dims": ()}, r"block_dims must hold at least one width, each at least 1, got \(\)"),
        ({"block_dims": (4, 0)}, r"got \(4, 0\)"),
        ({"time_dims": ()}, "time_dims must hold"),
        ({"condition_dims": ()}, "condition_dims must hold"),
        ({"max_frequency": 0.5}, "max_frequency must be at least 1, got 0.5"),
    ],
    ids=str,
)
def test_impossible_shapes_raise(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        FilmUNetArchitecture(**options)
