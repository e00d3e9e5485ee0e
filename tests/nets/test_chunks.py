"""Evaluation in pieces."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.models import Flow, FlowPolicy
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture, chunks
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.paths import AffinePath, TanhSquash
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.solvers import Euler
from tests.combinations import each_value


@each_value
@pytest.mark.parametrize("states", [1, 2, 7, 8])
@pytest.mark.parametrize("rows_per_state", [1, 3, 100])
def test_pieces_put_together_equal_one_call(monkeypatch, states, rows_per_state) -> None:
    monkeypatch.setattr(chunks, "CPU_ROWS", 6)
    sizes: list[int] = []

    def function(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(a))
        return a * b.sum(-1), b + a[:, None]

    a, b = torch.arange(float(states)), torch.randn(states, 3)
    first, second = map_in_chunks(function, rows_per_state, a, b)
    torch.testing.assert_close(first, a * b.sum(-1))
    torch.testing.assert_close(second, b + a[:, None])
    piece = max(1, 6 // rows_per_state)
    assert sum(sizes) == states
    assert max(sizes) <= piece
    assert (len(sizes) > 1) == (states > piece)


def test_critics_and_sampling_do_not_depend_on_the_size_of_the_pieces(monkeypatch) -> None:
    torch.manual_seed(0)
    critic = CriticArchitecture(hidden_dim=16).build(3, 2).double()
    network = VelocityArchitecture(hidden_dim=16, time_features=8).build(2, 3).double()
    policy = FlowPolicy(Flow(network, AffinePath(), t_min=0.01), 2, OdeSampler(Euler(2)), TanhSquash())
    observation, actions = torch.randn(7, 3).double(), torch.randn(7, 4, 2).double()

    def outputs() -> list[Tensor]:
        values = critic.action_values(observation, actions)
        return [
            values,
            *critic.action_values_and_gradients(observation, actions),
            policy.sample_latents(observation, actions),
        ]

    whole = outputs()
    monkeypatch.setattr(chunks, "CPU_ROWS", 9)
    for wanted, got in zip(whole, outputs(), strict=True):
        torch.testing.assert_close(got, wanted)
