"""Data that are cut by time limits: what is drawn from them must not depend on what followed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowmatch_rl.batches import SegmentNeeds, read_segment
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.data.transitions.segments import SegmentReader
from flowmatch_rl.data.transitions.time_limits import draw_time_limits
from flowmatch_rl.objectives import backup_weights
from tests.data.toy_trajectories import End, trajectory_store


def chain(path: Path, ends: float, limits: tuple[int, ...], number: int) -> TransitionStore:
    """Trajectories that terminate with a probability per step, as often as expected, and are cut at time limits."""
    trajectories: list[tuple[int, End]] = []
    for limit in limits:
        alive = [round(number * (1.0 - ends) ** step) for step in range(limit + 1)]
        for length in range(1, limit + 1):
            trajectories.extend((length, "terminated") for _ in range(alive[length - 1] - alive[length]))
        trajectories.extend((limit, "truncated") for _ in range(alive[limit]))
    return trajectory_store(path, trajectories)


def drawn(store: TransitionStore, needs: SegmentNeeds, batches: int) -> dict[str, Tensor]:
    reader = SegmentReader(store, needs, 2048, seed=0)
    taken = [reader.take() for _ in range(batches)]
    return {name: torch.cat([batch[name] for batch in taken]) for name in taken[0]}


@pytest.mark.parametrize("limits", [(50,), (40, 70), (35, 45, 50)], ids=str)
def test_futures_of_data_with_a_time_limit_are_terminal_as_often_as_they_should(
    tmp_path: Path, limits: tuple[int, ...]
) -> None:
    """Ending with p per step, a future is terminal with probability p / (1 - discount (1 - p)), here .092."""
    ends, discount = 0.01, 0.9
    store = chain(tmp_path / "set", ends, limits, 4_000 // len(limits))
    batch = drawn(store, SegmentNeeds(future_discounts=lambda uniform: torch.full_like(uniform, discount)), 60)
    rows = store.transitions
    terminal = rows.get(("next", "observation"))[rows.get(("next", "terminated")).squeeze(1)]
    lengths = torch.zeros(int(rows.get("observation")[:, 0].max()) + 1)
    lengths[terminal[:, 0].long()] = terminal[:, 1]
    share = (batch["future"][:, 1] == lengths[batch["future"][:, 0].long()]).double().mean().item()
    exact = ends / (1.0 - discount * (1.0 - ends))
    assert exact == pytest.approx(0.0917, abs=1e-4)
    # At most a twentieth of an occupancy lies beyond a cut, where a tenth of it is terminal.
    assert share == pytest.approx(exact, abs=0.004)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("limits", [(6,), (4, 7)], ids=str)
def test_steps_before_a_time_limit_terminate_as_often_as_others(
    tmp_path: Path, limits: tuple[int, ...], num_steps: int
) -> None:
    """A backup of the exact occupancy is the exact occupancy, wherever it starts: its mean look-ahead tells."""
    ends, discount = 0.3, 0.9
    exact = 1.0 / (1.0 - discount * (1.0 - ends))
    store = chain(tmp_path / "set", ends, limits, 4_000)
    segment = read_segment(drawn(store, SegmentNeeds(num_steps, next_action=True), 60))
    weights, rest = backup_weights(torch.full((len(segment.length),), discount), segment.terminated, segment.length)
    time = segment.observation[:, 1]
    ahead = segment.arrivals[..., 1] - time[:, None]
    found = (weights[:, 1:] * ahead).sum(1) + rest * (segment.length + exact)
    assert int(time.max()) == max(limits) - 2  # the action after a cut is not in the data
    for start in range(int(time.max()) + 1):
        here = found[time == start].double()
        assert abs(here.mean() - exact) < 0.02 * exact + 4.0 * here.std() / len(here) ** 0.5


def test_a_trajectory_that_was_cut_has_its_length_as_time_limit() -> None:
    lengths, uniform = torch.tensor([3, 7, 7]), torch.tensor([0.0, 0.5, 0.9])
    cut = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(draw_time_limits(lengths, cut, uniform), lengths)


def test_where_nothing_was_cut_nothing_would_have_been() -> None:
    lengths = torch.tensor([1, 2, 3])
    limits = draw_time_limits(lengths, torch.ones(3, dtype=torch.bool), torch.rand(3))
    assert bool((limits > 10**9).all())


@pytest.mark.parametrize("ends", [0.05, 0.4])
def test_time_limits_of_terminated_trajectories_are_those_of_trajectories_that_went_on(ends: float) -> None:
    """Cut after 2, 5 or 8 steps with probabilities .2, .3, .5: all trajectories together have these limits."""
    generator, number = torch.Generator().manual_seed(0), 40_000
    limit = torch.tensor([2, 5, 8])[torch.multinomial(torch.tensor([0.2, 0.3, 0.5]), number, True, generator=generator)]
    end = torch.rand(number, generator=generator).log().div(torch.tensor(1.0 - ends).log()).floor().long() + 1
    terminated, length = end <= limit, torch.minimum(end, limit)
    limits = draw_time_limits(length, terminated, torch.rand(number, generator=generator, dtype=torch.float64))
    assert bool((limits >= length).all())
    for steps, share in ((2, 0.2), (5, 0.3), (8, 0.5)):
        assert (limits == steps).double().mean().item() == pytest.approx(share, abs=0.02)
    early = terminated & (length <= 2)
    assert (limits[early] == 8).double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_single_trajectory_that_is_cut_last_makes_no_time_limit(tmp_path: Path) -> None:
    """Episodes that end by themselves after 1 to 8 steps, and one that the end of the data cut after 9."""
    ended: list[tuple[int, End]] = [(1 + i % 8, "terminated") for i in range(400)]
    store = trajectory_store(tmp_path / "set", [*ended, (9, "truncated")])
    needs = SegmentNeeds(future_discounts=lambda uniform: torch.full_like(uniform, 0.9))
    batch = drawn(store, needs, 10)
    assert batch["observation"][:, 0].unique().tolist() == list(range(400))
