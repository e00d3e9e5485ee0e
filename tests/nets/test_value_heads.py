"""Every head: values, laws and losses agree with each other; refusals."""

import math

import pytest
import torch
from torch import Tensor

from flowmatch_rl.nets import CategoricalHead, FlowHead, QuantileHead, ScalarHead, ValueHead
from flowmatch_rl.objectives import flow_times
from tests.combinations import each_value, one_test
from tests.families import VALUE_HEADS
from tests.oracles import F64, normal, uniform

M, B, R, H = 3, 4, 6, 8


def value_of_distribution(head: ValueHead, returns: Tensor) -> Tensor:
    """Mean (...) of laws (..., O), by what the description means."""
    if isinstance(head, CategoricalHead):
        return returns @ torch.linspace(head.v_min, head.v_max, head.num_atoms, dtype=returns.dtype)
    return returns.mean(-1)


@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_the_value_is_the_mean_of_the_law_and_what_is_read_off_the_last_layer(head) -> None:
    outputs = normal(M, B, head.num_outputs, seed=1)
    values = head.values(outputs)
    assert values.shape == (M, B)
    torch.testing.assert_close(values, value_of_distribution(head, head.distribution(outputs)))
    hidden, weight, bias = (
        normal(R, H, seed=1),
        normal(H, head.num_outputs, seed=2),
        normal(1, head.num_outputs, seed=3),
    )
    read, _ = head.read(hidden, weight, bias)
    torch.testing.assert_close(read, head.values(hidden @ weight + bias)[:, None])


@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_the_hidden_gradient_equals_autograd(head) -> None:
    hidden = normal(R, H, seed=1).requires_grad_()
    weight, bias = normal(H, head.num_outputs, seed=2), normal(1, head.num_outputs, seed=3)
    share = uniform(R, 1, seed=4)
    (slope,) = torch.autograd.grad((share * head.values(hidden @ weight + bias)[:, None]).sum(), hidden)
    with torch.no_grad():
        _, kept = head.read(hidden, weight, bias)
        torch.testing.assert_close(head.hidden_gradient(kept, weight, share), slope)


@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_the_loss_of_one_member_does_not_depend_on_the_others(head) -> None:
    outputs, returns = normal(M, B, head.num_outputs, seed=1), head.distribution(normal(B, head.num_outputs, seed=2))
    shift, scale = normal(B, seed=3), uniform(B, seed=4)
    noise = uniform(B, head.num_uniforms, seed=5)
    loss = head.loss(outputs, returns, shift, scale, noise)
    assert loss.shape == (B,)
    torch.testing.assert_close(
        loss, torch.stack([head.loss(outputs[m : m + 1], returns, shift, scale, noise) for m in range(M)]).mean(0)
    )
    for b in range(B):
        alone = head.loss(
            outputs[:, b : b + 1], returns[b : b + 1], shift[b : b + 1], scale[b : b + 1], noise[b : b + 1]
        )
        torch.testing.assert_close(alone, loss[b : b + 1])


@each_value
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_where_the_scale_is_zero_the_next_distribution_never_counts(head, bad) -> None:
    outputs, returns = normal(M, B, head.num_outputs, seed=1), head.distribution(normal(B, head.num_outputs, seed=2))
    shift, scale = normal(B, seed=3), torch.tensor([0.0, 0.5, 0.0, 0.9], dtype=F64)
    noise = uniform(B, head.num_uniforms, seed=5)
    wanted = head.loss(outputs, returns, shift, scale, noise)
    returns = returns.index_fill(0, torch.tensor([0, 2]), bad)
    torch.testing.assert_close(head.loss(outputs, returns, shift, scale, noise), wanted)


@pytest.mark.parametrize("head", VALUE_HEADS, ids=repr)
def test_descending_the_loss_brings_the_value_to_that_of_the_target(head) -> None:
    """One state that leads to itself with reward 1: the value is 1 / (1 - 0.6) = 2.5."""
    outputs = torch.zeros(1, 1, head.num_outputs, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([outputs], lr=0.05)
    shift, scale = torch.ones(1, dtype=F64), torch.full((1,), 0.6, dtype=F64)
    for step in range(1500):
        if step == 1000:
            optimizer.param_groups[0]["lr"] = 0.002
        optimizer.zero_grad()
        noise = uniform(1, head.num_uniforms, seed=step)
        head.loss(outputs, head.distribution(outputs.detach())[0], shift, scale, noise).sum().backward()
        optimizer.step()
    torch.testing.assert_close(head.values(outputs.detach()), torch.full((1, 1), 2.5, dtype=F64), atol=0.02, rtol=0.0)


def test_points_and_samples_of_a_flow_have_the_mean_and_deviation_that_its_tables_are_of() -> None:
    """Tables of a Gaussian are linear in their argument, so that moments are exact but for the steps of the flow."""
    head, mean, std = FlowHead(spread=2.0, num_points=5, num_steps=6, num_knots=33), 3.0, 1.4
    t = torch.tensor(flow_times(6)[1:], dtype=F64)[:, None]
    slope = t * std**2 / ((1.0 - t) ** 2 * head.spread**2 + t**2 * std**2)
    tables = slope * torch.linspace(-8.0, 8.0, 33, dtype=F64)
    outputs = torch.cat([torch.tensor([mean], dtype=F64), tables.flatten()]).expand(2, -1)
    points = head.distribution(outputs)
    torch.testing.assert_close(points.mean(-1), torch.full((2,), mean, dtype=F64))
    torch.testing.assert_close(points.std(-1, correction=0), torch.full((2,), std, dtype=F64), rtol=0.02, atol=0.0)
    noise = torch.tensor([[-1.0, 0.5, 2.0]] * 2, dtype=F64)
    torch.testing.assert_close(head.sample(outputs, noise), mean + std * noise, rtol=0.0, atol=0.05)


@one_test
@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (ScalarHead, {"huber_delta": 0.0}, ["huber_delta", "0.0"]),
        (ScalarHead, {"huber_delta": math.inf}, ["huber_delta", "inf"]),
        (CategoricalHead, {"num_atoms": 1}, ["num_atoms", "1"]),
        (CategoricalHead, {"v_min": 1.0, "v_max": 1.0}, ["v_min < v_max", "1.0 and 1.0"]),
        (CategoricalHead, {"v_max": math.inf}, ["inf"]),
        (CategoricalHead, {"v_min": math.nan}, ["nan"]),
        (FlowHead, {"spread": 0.0}, ["spread", "0.0"]),
        (FlowHead, {"num_points": 1}, ["num_points", "1"]),
        (FlowHead, {"num_steps": 0}, ["num_steps", "0"]),
        (FlowHead, {"num_knots": 1}, ["num_knots", "1"]),
        (QuantileHead, {"num_quantiles": 0}, ["num_quantiles", "0"]),
        (QuantileHead, {"huber_delta": -1.0}, ["huber_delta", "-1.0"]),
        (QuantileHead, {"huber_delta": math.nan}, ["huber_delta", "nan"]),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(kind, options, words) -> None:
    with pytest.raises(ValueError) as caught:
        kind(**options)
    assert all(word in str(caught.value) for word in words)
