"""Data sets of trajectories whose every entry tells its trajectory and its time."""

from pathlib import Path
from typing import Any, Literal

import torch
from tensordict import TensorDict
from torch import Tensor

from flowmatch_rl.data import StoreInfo, TransitionStore, TransitionWriter

End = Literal["terminated", "truncated"]

TRAJECTORIES: list[tuple[int, End]] = [
    (4, "truncated"),
    (1, "terminated"),
    (3, "terminated"),
    (1, "truncated"),
    (5, "truncated"),
    (2, "terminated"),
]
"""Lengths and ends."""

COLUMNS = ("trajectory", "time")


def action_at(trajectory: Tensor, time: Tensor) -> Tensor:
    """The action taken at a time of a trajectory, shape (*batch, 1)."""
    return (0.05 * trajectory + 0.01 * time)[..., None] % 1.9 - 0.9


def trajectory_rows(trajectories: list[tuple[int, End]], embedding_dim: int = 0, next_action: bool = False):
    """Rows of the trajectories, one after the other; the observation is (trajectory, time)."""
    trajectory = torch.cat([torch.full((length,), float(i)) for i, (length, _) in enumerate(trajectories)])
    time = torch.cat([torch.arange(float(length)) for length, _ in trajectories])
    last = torch.cat([torch.arange(length) == length - 1 for length, _ in trajectories])
    kind = torch.cat([torch.full((length,), end == "terminated") for length, end in trajectories])
    following: dict[str, Any] = {
        "observation": torch.stack([trajectory, time + 1.0], 1),
        "reward": time[:, None],
        "terminated": (last & kind)[:, None],
        "truncated": (last & ~kind)[:, None],
        "done": last[:, None],
    }
    rows: dict[str, Any] = {"observation": torch.stack([trajectory, time], 1), "action": action_at(trajectory, time)}
    if next_action:
        following["action"] = action_at(trajectory, time + 1.0)
    if embedding_dim:
        rows["embedding"] = trajectory[:, None].expand(-1, embedding_dim).clone()
    number = len(time)
    return TensorDict(rows | {"next": TensorDict(following, [number])}, [number])


def trajectory_store(
    path: Path, trajectories: list[tuple[int, End]] = TRAJECTORIES, ordered: bool = True, **changes: Any
) -> TransitionStore:
    """A data set of the trajectories."""
    rows = trajectory_rows(trajectories, changes.get("embedding_dim", 0), changes.get("has_next_action", False))
    info = StoreInfo(
        columns=COLUMNS,
        action_dim=1,
        num_transitions=len(rows),
        ordered=ordered,
        provenance={"made_by": "a test"},
        **changes,
    )
    with TransitionWriter(path, info) as writer:
        writer.append(rows)
        return writer.finish()
