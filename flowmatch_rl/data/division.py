"""What several processes collected, divided among another number of them."""

from typing import Any

import torch
from torch import Tensor


def divided_state(states: list[dict[str, Any]], rank: int, world_size: int, capacity: int) -> dict[str, Any]:
    """The state of a collection of one process, made of those of the processes of an earlier run.

    Transitions are dealt out one by one from the newest on, so that those of every process are as old as those of the
    others: none comes twice, and the oldest are dropped where the buffers are too small for all. Environment steps are
    divided evenly; ``extra_env_steps`` are those that remain.

    Args:
        states: States of the collections of the earlier run, by rank.
        rank: Global rank of the process.
        world_size: Number of processes.
        capacity: Transitions that a process keeps.

    Returns:
        The state, without episodes, which begin anew.
    """
    first = states[0]
    total = sum(state["local_env_steps"] for state in states) + first.get("extra_env_steps", 0)
    divided = {name: value for name, value in first.items() if name not in ("replay", "episodes")}
    divided |= {"local_env_steps": total // world_size, "extra_env_steps": total % world_size}
    held = [state["replay"] for state in states if "replay" in state]
    if held:
        divided["replay"] = _dealt(held, rank, world_size, capacity)
    return divided


def division_line(states: list[dict[str, Any]], world_size: int, capacity: int) -> str:
    """What becomes of the transitions of an earlier run, in a line; empty if there are none.

    Args:
        states: As for ``divided_state``.
        world_size: Number of processes.
        capacity: Transitions that a process keeps.
    """
    counts = [_rows(state["replay"]) for state in states if "replay" in state]
    if not counts:
        return ""
    dropped = max(0, sum(counts) - world_size * capacity)
    rest = f", the oldest {dropped:,} dropped" if dropped else ""
    return f"{sum(counts):,} transitions of {len(states)} processes are divided among {world_size}{rest}"


def _dealt(held: list[dict[str, Tensor]], rank: int, world_size: int, capacity: int) -> dict[str, Tensor]:
    """The rows of one process, oldest first, of buffers that hold theirs oldest first."""
    counts = [_rows(rows) for rows in held]
    ages = torch.cat([torch.arange(count).flip(0) for count in counts])
    order = ages.argsort(stable=True)  # the newest rows first, those of one age by rank
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    is_own = (places % world_size == rank) & (places < world_size * capacity)
    parts = is_own.split(counts)
    oldest_first = places[is_own].argsort(descending=True)
    return {
        name: torch.cat([rows[name][part] for rows, part in zip(held, parts, strict=True)])[oldest_first]
        for name in held[0]
    }


def _rows(replay: dict[str, Tensor]) -> int:
    return len(next(iter(replay.values())))
