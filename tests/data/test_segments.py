"""Segments of stored trajectories against segments written down by hand."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict.memmap import MemoryMappedTensor
from torch import Tensor

from flowmatch_rl.batches import SegmentNeeds, read_segment
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.data.transitions.segments import RowSampler, SegmentReader
from tests.combinations import each_pair
from tests.data.toy_trajectories import TRAJECTORIES, End, action_at, trajectory_store

ROWS = [(i, k) for i, (length, _) in enumerate(TRAJECTORIES) for k in range(length)]
"""Trajectory and time of every row."""


def always(discount: float) -> Callable[[Tensor], Tensor]:
    return lambda uniform: torch.full_like(uniform, discount)


def batches(reader: SegmentReader, number: int) -> dict[str, Tensor]:
    """Several batches side by side."""
    taken = [reader.take() for _ in range(number)]
    return {name: torch.cat([batch[name] for batch in taken]) for name in taken[0]}


def drawn_rows(batch: dict[str, Tensor]) -> set[tuple[int, int]]:
    return {(int(i), int(k)) for i, k in batch["observation"].tolist()}


def usable(num_steps: int, next_action: bool, known: bool) -> set[tuple[int, int]]:
    """Rows that have what is needed: all, but those whose next action would be after a truncation."""
    lost = next_action and not known
    return {(i, k) for i, k in ROWS if not (lost and TRAJECTORIES[i][1] == "truncated" and k == TRAJECTORIES[i][0] - 1)}


def steps_ahead(trajectory: int, time: int, num_steps: int, next_action: bool, known: bool) -> int:
    length, end = TRAJECTORIES[trajectory]
    last = length - 1 if next_action and not known and end == "truncated" else length
    return min(num_steps, last - time)


@each_pair
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("next_action", [False, True])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_every_segment_is_the_one_written_down(tmp_path: Path, num_steps: int, next_action: bool, known: bool) -> None:
    store = trajectory_store(tmp_path / "set", has_next_action=known)
    batch = batches(SegmentReader(store, SegmentNeeds(num_steps, next_action), 32, seed=0), 20)
    assert drawn_rows(batch) == usable(num_steps, next_action, known)
    trajectory, time = batch["observation"].unbind(1)
    assert torch.equal(batch["action"], action_at(trajectory, time))
    segment = read_segment(batch)
    assert segment.arrivals.shape == (640, num_steps, 2)
    assert segment.terminated.shape == (640, num_steps)
    assert segment.terminated.dtype == torch.bool
    assert segment.embedding.shape == (640, 0)
    for i, k, length, arrivals, terminated in zip(
        trajectory.int().tolist(),
        time.int().tolist(),
        segment.length.tolist(),
        segment.arrivals.tolist(),
        segment.terminated.tolist(),
        strict=True,
    ):
        assert length == steps_ahead(i, k, num_steps, next_action, known)
        # Beyond the segment its last state is repeated, and no window leaves the trajectory.
        assert arrivals == [[i, k + min(j + 1, length)] for j in range(num_steps)]
        whole, end = TRAJECTORIES[i]
        assert terminated == [end == "terminated" and k + min(j + 1, length) == whole for j in range(num_steps)]
    if not next_action:
        assert segment.next_action is None
        return
    assert segment.next_action is not None
    at_end = segment.terminated.any(1)
    wanted = action_at(trajectory, time + segment.length)
    torch.testing.assert_close(segment.next_action[~at_end], wanted[~at_end])
    if known:
        torch.testing.assert_close(segment.next_action, wanted)


def test_members_of_a_family_travel_with_their_segments(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set", embedding_dim=2)
    batch = batches(SegmentReader(store, SegmentNeeds(3), 32, seed=0), 5)
    assert torch.equal(batch["embedding"], batch["observation"][:, :1].expand(-1, 2))


@pytest.mark.parametrize("needs", [SegmentNeeds(), SegmentNeeds(3), SegmentNeeds(1, True)], ids=repr)
def test_rows_that_are_held_out_are_never_drawn(tmp_path: Path, needs: SegmentNeeds) -> None:
    store = trajectory_store(tmp_path / "set")
    reader = SegmentReader(store, needs, 32, seed=0, held_out=7)  # the last two trajectories
    batch = batches(reader, 20)
    assert drawn_rows(batch) == {(i, k) for i, k in usable(needs.num_steps, needs.next_action, False) if i < 4}
    assert int(batch["arrivals"][..., 0].max()) < 4


ABSORBED: list[tuple[int, End]] = [(3, "terminated"), (1, "terminated"), (60, "truncated")]


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.9])
def test_futures_are_geometric_and_a_terminal_state_absorbs_the_rest(tmp_path: Path, discount: float) -> None:
    store = trajectory_store(tmp_path / "set", ABSORBED)
    needs = SegmentNeeds(future_discounts=always(discount))
    batch = batches(SegmentReader(store, needs, 512, seed=1), 60)
    assert torch.equal(batch["future"][:, 0], batch["observation"][:, 0])
    torch.testing.assert_close(batch["discount"], torch.full_like(batch["discount"], discount))
    ahead = (batch["future"] - batch["observation"])[:, 1].long()
    assert int(ahead.min()) == 1
    for trajectory, length in ((0, 3), (1, 1), (2, 60)):
        for time in range(min(length, 3)):
            chosen = ahead[(batch["observation"] == torch.tensor([trajectory, time])).all(1)]
            left = length - time
            terminal = trajectory < 2
            for k in range(1, min(left, 6) + 1):
                share = (1.0 - discount) * discount ** (k - 1)
                share = discount ** (k - 1) if terminal and k == left else share
                share = share if terminal else share / (1.0 - discount**left)
                found = (chosen == k).double().mean().item()
                assert abs(found - share) < 4.5 * math.sqrt(share * (1.0 - share) / len(chosen)) + 1e-9


def test_rows_whose_trajectory_stops_too_soon_for_the_occupancy_are_not_drawn(tmp_path: Path) -> None:
    lengths: list[tuple[int, End]] = [(9, "truncated"), (9, "truncated"), (4, "truncated"), (6, "terminated")]
    store = trajectory_store(tmp_path / "set", lengths)
    batch = batches(SegmentReader(store, SegmentNeeds(future_discounts=always(0.5)), 64, seed=0), 10)
    # 0.5^5 is the first power of at most 0.05. The last trajectory would have been cut as the first was.
    assert drawn_rows(batch) == {(i, k) for i in (0, 1, 3) for k in range(5)}


def test_the_highest_discount_decides_which_rows_are_drawn(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set", [(9, "truncated")])
    needs = SegmentNeeds(future_discounts=lambda uniform: 0.5 * uniform)
    batch = batches(SegmentReader(store, needs, 64, seed=0), 10)
    assert drawn_rows(batch) == {(0, k) for k in range(5)}
    assert 0.0 <= float(batch["discount"].min()) < 0.05
    assert 0.45 < float(batch["discount"].max()) <= 0.5


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (SegmentNeeds(next_action=True), "is a shuffled table without next actions; name a policy to model"),
        (SegmentNeeds(num_steps=2), "num_steps 2 needs trajectories; .* is a shuffled table"),
        (SegmentNeeds(future_discounts=always(0.9)), "MonteCarloCFM needs trajectories; .* is a shuffled table"),
    ],
    ids=["next actions", "several steps", "futures"],
)
def test_a_shuffled_table_is_refused_where_trajectories_are_needed(
    tmp_path: Path, needs: SegmentNeeds, message: str
) -> None:
    store = trajectory_store(tmp_path / "set", ordered=False)
    with pytest.raises(ValueError, match=message) as caught:
        SegmentReader(store, needs, 8, seed=0)
    assert "\n" not in str(caught.value)
    assert str(store.path) in str(caught.value)


def test_a_shuffled_table_serves_single_steps_and_next_actions_that_it_holds(tmp_path: Path) -> None:
    plain = trajectory_store(tmp_path / "plain", ordered=False)
    assert drawn_rows(batches(SegmentReader(plain, SegmentNeeds(), 64, seed=0), 10)) == set(ROWS)
    known = trajectory_store(tmp_path / "known", ordered=False, has_next_action=True)
    batch = batches(SegmentReader(known, SegmentNeeds(next_action=True), 64, seed=0), 10)
    assert drawn_rows(batch) == set(ROWS)
    trajectory, time = batch["observation"].unbind(1)
    torch.testing.assert_close(batch["next_action"], action_at(trajectory, time + 1.0))


@pytest.mark.parametrize(
    ("trajectories", "needs"),
    [
        ([(1, "truncated"), (1, "truncated")], SegmentNeeds(next_action=True)),
        ([(4, "truncated")], SegmentNeeds(future_discounts=always(0.9))),
    ],
    ids=["next actions", "futures"],
)
def test_data_of_which_no_row_can_be_used_are_refused(
    tmp_path: Path, trajectories: list[tuple[int, End]], needs: SegmentNeeds
) -> None:
    store = trajectory_store(tmp_path / "set", trajectories)
    with pytest.raises(ValueError, match=re.escape(f"{store.path} has no trajectory long enough")):
        SegmentReader(store, needs, 8, seed=0)


EVERYTHING = SegmentNeeds(2, True, lambda uniform: 0.3 + 0.1 * uniform)


def reader(store: TransitionStore, seed: int = 3, drawn: int = 0, **options: Any) -> SegmentReader:
    return SegmentReader(store, EVERYTHING, 8, seed, drawn, **options)


def assert_equal_batches(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    torch.manual_seed(1)
    first = reader(store)
    taken = [first.take() for _ in range(5)]
    torch.manual_seed(2)
    again, late = reader(store), reader(store, drawn=3)
    for number, batch in enumerate(taken):
        torch.rand(number)  # the global noise is of no account
        assert_equal_batches(batch, again.take())
    assert_equal_batches(taken[3], late.take())
    assert_equal_batches(taken[4], late.take())
    assert not torch.equal(taken[0]["observation"], taken[1]["observation"])


def test_reading_leaves_the_global_noise_alone(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    before = torch.get_rng_state()
    reader(store).take()
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_draw_differently(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    one, other = reader(store, seed=3), reader(store, seed=4)
    first = [one.take() for _ in range(4)]
    second = [other.take() for _ in range(4)]
    assert all(
        not torch.equal(mine["observation"], theirs["observation"])
        or not torch.equal(mine["discount"], theirs["discount"])
        for mine in first
        for theirs in second
    )


def test_the_state_of_a_sampler_is_the_number_of_its_batches(tmp_path: Path) -> None:
    sampler = RowSampler(None, seed=0)
    for _ in range(3):
        sampler.sample(range(100), 4)
    assert sampler.state_dict() == {"drawn": 3}
    other = RowSampler(None, seed=0)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(sampler.sample(range(100), 4)[0], other.sample(range(100), 4)[0])
    assert torch.equal(sampler.uniform(3), other.uniform(3))


def test_rows_are_read_from_the_disk_as_they_are_needed(tmp_path: Path) -> None:
    store = trajectory_store(tmp_path / "set")
    reading = SegmentReader(store, SegmentNeeds(), 64, seed=0)
    with (tmp_path / "set" / "transitions" / "action.memmap").open("r+b") as file:
        file.write(torch.full((len(store),), 0.125).numpy().tobytes())
    batch = reading.take()
    assert torch.equal(batch["action"], torch.full((64, 1), 0.125))
    assert not any(isinstance(value, MemoryMappedTensor) for value in batch.values())
