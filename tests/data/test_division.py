"""What several processes collected goes to another number of them: nothing lost, nothing twice, counters right."""

from typing import Any

import pytest
import torch

from flowmatch_rl.data.base import batch_loader
from flowmatch_rl.data.division import divided_state, division_line
from tests.data.test_online import build, held, take


def collected(world_size: int, number: int, **options: Any) -> dict[str, Any]:
    """What a checkpoint holds of processes that took some batches each."""
    states = []
    for rank in range(world_size):
        data = build(world_size=world_size, rank=rank, **options)
        take(data, number)
        states.append(data.state_dict())
    return states[0] if world_size == 1 else {"ranks": states}


def resumed(state: dict[str, Any], world_size: int, **options: Any) -> list[Any]:
    made = []
    for rank in range(world_size):
        data = build(world_size=world_size, rank=rank, **options)
        data.load_state_dict(state)
        made.append(data)
    return made


def marks(rows: Any) -> list[tuple[float, float]]:
    """What tells transitions of the toy apart: the step of the episode, and the number drawn at its start."""
    return [tuple(row) for row in rows["observation"].tolist()]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_every_transition_goes_to_one_process_and_all_have_as_many_of_every_age(before: int, after: int) -> None:
    state = collected(before, 13)
    states = state.get("ranks", [state])
    parts = [marks(held(data)) for data in resumed(state, after)]
    assert sorted(mark for part in parts for mark in part) == sorted(
        mark for own in states for mark in marks(own["replay"])
    )
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    age = {mark: len(own["replay"]["action"]) - row for own in states for row, mark in enumerate(marks(own["replay"]))}
    for part in parts:
        assert [age[mark] for mark in part] == sorted((age[mark] for mark in part), reverse=True)
    newest = [age[part[-1]] for part in parts]
    assert max(newest) <= 1 + after // before


def test_full_buffers_drop_the_oldest_transitions_and_the_line_says_how_many() -> None:
    state = collected(3, 30, buffer_capacity=10)
    assert division_line(state["ranks"], 2, 10) == (
        "30 transitions of 3 processes are divided among 2, the oldest 10 dropped"
    )
    kept = [mark for data in resumed(state, 2, buffer_capacity=10) for mark in marks(held(data))]
    newest = [mark for own in state["ranks"] for mark in marks(own["replay"])[-6:]]
    assert len(set(kept)) == len(kept) == 20
    assert set(newest) <= set(kept)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_environment_steps_and_their_ratio_to_updates_go_on_as_they_were(before: int, after: int, capsys) -> None:
    state = collected(before, 6, updates_per_env_step=0.5)
    taken = build(world_size=before)
    taken.load_state_dict(state)
    data = resumed(state, after, updates_per_env_step=0.5)[0]
    assert f"processes are divided among {after}" in capsys.readouterr().out
    assert data.env_steps == taken.env_steps
    take(data, 10)
    assert data.env_steps == taken.env_steps + 10 * 2 * after
    again = build(world_size=after, updates_per_env_step=0.5)
    again.load_state_dict({"ranks": [data.state_dict()] * after} if after > 1 else data.state_dict())
    assert again.env_steps == data.env_steps


def test_steps_that_do_not_divide_evenly_are_kept() -> None:
    states = [{"local_env_steps": 7, "pending_updates": 0.0}] * 3
    (first, second) = (divided_state(states, rank, 2, 10) for rank in (0, 1))
    assert first == second == {"local_env_steps": 10, "extra_env_steps": 1, "pending_updates": 0.0}
    assert divided_state([first, second], 0, 3, 10)["local_env_steps"] == 7


@pytest.mark.parametrize(("made", "wanted"), [(0, 0), (1, 1), (6, 3), (11, 5), (12, 6)])
def test_an_epoch_of_another_length_continues_after_the_same_fraction(made: int, wanted: int) -> None:
    moved: list[int] = []
    loader = batch_loader(6, lambda number: torch.tensor(number))
    loader.world_size, loader.on_moved = 2, moved.append
    loader.load_state_dict({"made": made, "of": 12, "processes": 1})
    assert [int(batch) for batch in loader] == list(range(wanted, 6))
    assert moved == [wanted]


def test_an_epoch_of_another_length_in_as_many_processes_continues_after_as_many_batches() -> None:
    loader = batch_loader(6, lambda number: torch.tensor(number))
    loader.load_state_dict({"made": 4, "of": 12, "processes": 1})
    assert [int(batch) for batch in loader] == [4, 5]
