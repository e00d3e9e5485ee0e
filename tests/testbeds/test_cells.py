"""Ring and random walk: their closed forms against definitions, long series and simulation."""

import pytest
import torch
from torch import Tensor

from flowmatch_rl.testbeds import CellProcess, RandomWalkProcess, RingProcess, discounted_occupancy, geometric_steps
from tests.combinations import each_value, one_test
from tests.testbeds.cell_policies import CELL_PROCESSES, PatternPolicy, pairs

DISCOUNTS = [0.0, 0.5, 0.9, 0.99]
every_process = pytest.mark.parametrize("process", CELL_PROCESSES, ids=repr)
every_discount = pytest.mark.parametrize("discount", DISCOUNTS)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def first_step(process: CellProcess, state: Tensor, action: Tensor) -> Tensor:
    rows = [process.transition_matrix(a.expand(process.num_states, 1)) for a in action]
    return torch.stack([row[cell] for row, cell in zip(rows, process.cell(state), strict=True)])


@every_process
def test_centres_lie_in_their_own_cells_and_jittered_points_too(process: CellProcess) -> None:
    cells = torch.arange(process.num_states)
    assert torch.equal(process.cell(process.centres()), cells)
    points = process.centres() + process.jitter * seeded(1000, process.num_states, 2)
    assert torch.equal(process.cell(points), cells.expand(1000, -1))


@every_process
def test_steps_land_in_cells_as_the_transition_matrix_says(process: CellProcess) -> None:
    count = 60_000
    for a in (-1.0, 0.0, 1.0):
        actions = torch.full((process.num_states, 1), a, dtype=torch.float64)
        matrix = process.transition_matrix(actions)
        torch.testing.assert_close(matrix.sum(-1), torch.ones(process.num_states, dtype=torch.float64))
        for cell in (~process.terminal_cells()).nonzero().flatten().tolist():
            states = process.centres()[cell].expand(count, 2)
            moved, ended = process.step(states, actions[:1].expand(count, 1), seeded(count, 3, seed=cell))
            counts = torch.bincount(process.cell(moved), minlength=process.num_states) / count
            assert (counts - matrix[cell]).abs().max() < 5.0 * 0.5 / count**0.5
            assert torch.equal(ended, process.terminal_cells()[process.cell(moved)])
            assert torch.equal(counts > 0, matrix[cell] > 0)
            offset = (moved - process.centres()[process.cell(moved)]) / process.jitter
            assert abs(float(offset.square().mean()) - 1.0) < 0.02


@each_value
@pytest.mark.parametrize("include_current", [False, True])
@every_discount
@every_process
def test_occupancy_is_a_distribution_that_solves_the_bellman_equation(
    process: CellProcess, discount: float, include_current: bool
) -> None:
    policy = PatternPolicy(process)
    state, action = pairs(process)
    occupancy = process.occupancy(state, action, policy, discount, include_current=include_current)
    torch.testing.assert_close(occupancy.sum(-1), torch.ones(len(state), dtype=torch.float64))
    assert (occupancy >= 0.0).all()
    centres = process.centres()
    later = process.occupancy(centres, policy.act(centres), policy, discount, include_current=include_current)
    now = torch.nn.functional.one_hot(process.cell(state), process.num_states).double()
    first = first_step(process, state, action)
    one_step = now if include_current else first
    torch.testing.assert_close(
        occupancy, (1.0 - discount) * one_step + discount * first @ later, rtol=1e-12, atol=1e-13
    )


@each_value
@every_discount
@every_process
def test_occupancy_is_the_long_series_of_steps(process: CellProcess, discount: float) -> None:
    policy = PatternPolicy(process)
    state, action = pairs(process)
    law, kernel = first_step(process, state, action), process.policy_matrix(policy)
    series = torch.zeros_like(law)
    for k in range(4000):
        series = series + (1.0 - discount) * discount**k * law
        law = law @ kernel
    torch.testing.assert_close(process.occupancy(state, action, policy, discount), series, rtol=0.0, atol=1e-12)


@every_process
def test_simulated_futures_at_geometric_times_follow_the_occupancy(process: CellProcess) -> None:
    discount, count, horizon = 0.8, 20_000, 60
    policy = PatternPolicy(process)
    state, action = pairs(process, count=3)
    noise = seeded(horizon, count, 3, 3, seed=1)
    futures, _ = process.futures(policy, state.expand(count, 3, 2), action.expand(count, 3, 1), noise)
    uniform = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    steps = geometric_steps(uniform, discount, horizon)
    reached = futures.gather(0, (steps - 1)[None, ..., None].expand(1, count, 3, 2))[0]
    frequency = torch.nn.functional.one_hot(process.cell(reached), process.num_states).double().mean(0)
    wanted = process.occupancy(state, action, policy, discount)
    assert (frequency - wanted).abs().max() < 4.5 * 0.5 / count**0.5
    for i in range(3):
        mixture = process.mixture(wanted[i])
        second_moment = mixture.weights @ (mixture.means.square() + process.jitter**2)
        assert (reached[:, i].square().mean(0) - second_moment).abs().max() < 0.05


@every_process
def test_members_of_a_family_have_the_occupancies_they_would_have_alone(process: CellProcess) -> None:
    family = PatternPolicy(process, is_family=True)
    state, action = pairs(process)
    embedding = torch.linspace(-1.0, 1.0, len(state), dtype=torch.float64)[:, None]
    together = process.occupancy(state, action, family, 0.9, embedding)
    for i in range(len(state)):
        kernel = process.transition_matrix(embedding[i].expand(process.num_states, 1))
        alone = discounted_occupancy(first_step(process, state[i : i + 1], action[i : i + 1]), kernel, 0.9)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_bellman_operator_contracts_total_variation_on_the_ring(discount: float) -> None:
    process = RingProcess()
    kernel = process.policy_matrix(PatternPolicy(process))
    for seed in range(20):
        p, q = (seeded(12, 12, seed=2 * seed + i).softmax(-1) for i in (0, 1))
        before = (p - q).abs().sum(-1).max()
        after = (discount * kernel @ (p - q)).abs().sum(-1).max()
        assert after <= discount * before * (1.0 + 1e-12)
        fixed = process.occupancy(
            process.centres(), PatternPolicy(process).act(process.centres()), PatternPolicy(process), discount
        )
        iterated = (1.0 - discount) * kernel + discount * kernel @ p
        assert (iterated - fixed).abs().sum(-1).max() <= discount * (p - fixed).abs().sum(-1).max() * (1.0 + 1e-12)


def test_a_terminal_state_keeps_the_mass_that_reaches_it() -> None:
    walk = RandomWalkProcess(num_states=3, slip=0.45)  # staying is asked for, and 0.3 of the steps reach an end
    policy = PatternPolicy(walk)
    still = torch.zeros(1, dtype=torch.float64)
    middle = walk.centres()[1]
    assert float(policy.act(middle)) == 0.0
    occupancy = walk.occupancy(middle, still, policy, 0.9)
    assert float(occupancy[1]) == pytest.approx(0.7 * 0.1 / (1.0 - 0.9 * 0.7))
    assert [round(float(m), 3) for m in (occupancy[1], occupancy[0] + occupancy[2])] == [0.189, 0.811]
    futures, ended = walk.futures(
        policy, middle.expand(500, 2), still.expand(500, 1), seeded(40, 500, 3), generator=torch.Generator()
    )
    assert ended[-1].all()
    assert torch.equal(futures[1:][ended[:-1]], futures[:-1][ended[:-1]])


@every_process
def test_mixture_has_one_component_of_the_jitter_per_cell_that_can_occur(process: CellProcess) -> None:
    state, action = pairs(process)
    for discount in (0.0, 0.9):
        probabilities = process.occupancy(state[0], action[0], PatternPolicy(process), discount)
        mixture = process.mixture(probabilities)
        points = process.centres()[:, None] + process.jitter * seeded(process.num_states, 7, 2)
        normal = torch.distributions.Normal(process.centres(), process.jitter)
        density = normal.log_prob(points[..., None, :]).sum(-1).exp() @ probabilities
        torch.testing.assert_close(mixture.log_prob(points).exp(), density)


@every_process
def test_starts_are_uniform_over_the_cells_that_do_not_end(process: CellProcess) -> None:
    cells = process.cell(process.start(seeded(50_000, 3)))
    wanted = (~process.terminal_cells()).double()
    frequency = torch.bincount(cells, minlength=process.num_states) / 50_000
    torch.testing.assert_close(frequency.double(), wanted / wanted.sum(), rtol=0.0, atol=0.012)
    assert not process.terminal_cells()[cells].any()


@one_test
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RingProcess(jitter=0.06), "0.05176"),
        (lambda: RingProcess(num_states=2), "at least 3, got 2"),
        (lambda: RandomWalkProcess(slip=1.5), "[0, 1], got 1.5"),
        (lambda: RingProcess().occupancy(*pairs(RingProcess()), PatternPolicy(RingProcess()), 1.0), "[0, 1), got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
