"""Evaluation in pieces."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from flowmatch_rl.models import Flow, FlowPolicy, Likelihood
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture, chunks
from flowmatch_rl.nets.chunks import map_in_chunks
from flowmatch_rl.paths import AffinePath, TanhSquash
from flowmatch_rl.samplers import OdeSampler, Sampler, SdeSampler
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


@pytest.fixture
def two_threads(monkeypatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(chunks, "CPU_ROWS", 4)
    monkeypatch.setattr(chunks, "THREAD_ROWS", 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def test_each_thread_takes_whole_pieces_and_computes_by_itself(two_threads) -> None:
    torch.set_num_threads(3)  # a number that no other test has made threads for
    met = threading.Barrier(3, timeout=20.0)  # broken if the pieces follow one another
    used: list[tuple[int, int]] = []

    def function(a: Tensor) -> tuple[Tensor]:
        met.wait()
        used.append((threading.get_ident(), torch.get_num_threads()))
        return (2.0 * a,)

    a = torch.arange(12.0)
    torch.testing.assert_close(map_in_chunks(function, 1, a)[0], 2.0 * a)
    assert [threads for _, threads in used] == [1, 1, 1]
    assert len({thread for thread, _ in used}) == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3


@torch.no_grad()
def test_a_batch_that_fits_the_cache_is_divided_among_threads_unless_it_is_small(two_threads) -> None:
    sizes: list[int] = []

    def function(a: Tensor) -> tuple[Tensor]:
        sizes.append(len(a))
        return (a,)

    map_in_chunks(function, 1, torch.ones(4))
    assert sizes == [2, 2]
    sizes.clear()
    map_in_chunks(function, 1, torch.ones(2))
    assert sizes == [2]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("rounds", [False, True])
def test_threads_round_and_record_as_the_one_that_calls(two_threads, inference, rounds) -> None:
    modes: list[tuple[bool, bool, torch.dtype]] = []

    def function(a: Tensor) -> tuple[Tensor]:
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.mm(a, a.T).dtype))
        return (a,)

    with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rounds):
        map_in_chunks(function, 1, torch.ones(8, 2))
    assert set(modes) == {(inference, False, torch.bfloat16 if rounds else torch.float32)}


def test_an_error_in_a_piece_reaches_the_caller(two_threads) -> None:
    def function(a: Tensor) -> tuple[Tensor]:
        raise ValueError(f"row {int(a[0])}")

    with torch.no_grad(), pytest.raises(ValueError, match="row 0"):
        map_in_chunks(function, 1, torch.arange(8.0))


def test_pieces_with_gradients_stay_in_the_thread_that_calls(two_threads) -> None:
    a = torch.arange(8.0, requires_grad=True)
    map_in_chunks(lambda rows: (rows.square(),), 1, a)[0].sum().backward()
    torch.testing.assert_close(a.grad, 2.0 * a.detach())


@pytest.mark.parametrize("sampler", [OdeSampler(Euler(2)), SdeSampler(2)], ids=repr)
def test_samples_under_a_seed_do_not_depend_on_the_threads(two_threads, sampler: Sampler) -> None:
    network = VelocityArchitecture(hidden_dim=16, time_features=8).build(2, 3).double()
    flow = Flow(network, AffinePath(), t_min=0.01)
    noise, condition = torch.randn(64, 2).double(), torch.randn(64, 3).double()

    def samples() -> Tensor:
        torch.manual_seed(0)
        return flow.sample(noise, sampler, condition)

    divided = samples()
    torch.set_num_threads(1)
    torch.testing.assert_close(samples(), divided)


def test_log_densities_do_not_depend_on_the_threads(two_threads) -> None:
    network = VelocityArchitecture(hidden_dim=16, time_features=8).build(2, 3).double()
    flow = Flow(network, AffinePath(), t_min=0.01)
    sample, condition = torch.randn(16, 2).double(), torch.randn(16, 3).double()
    divided = flow.log_prob(sample, Likelihood(Euler(4)), condition)
    torch.set_num_threads(1)
    torch.testing.assert_close(flow.log_prob(sample, Likelihood(Euler(4)), condition), divided)
