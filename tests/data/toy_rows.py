"""Rows of transitions whose every number is drawn, and a data set of them."""

import torch
from tensordict import TensorDict

from flowmatch_rl.data import StoreInfo, TransitionStore, TransitionWriter

COLUMNS = ("position", "speed")
ACTION_DIM = 3
PROVENANCE = {"made_by": "a test", "seed": 0}


def toy_rows(number: int, embedding_dim: int = 0, next_action: bool = False) -> TensorDict:
    """Rows with all entries random, about a quarter of which end a trajectory."""
    generator = torch.Generator().manual_seed(number)

    def normal(width: int) -> torch.Tensor:
        return torch.randn(number, width, generator=generator) * torch.tensor(3.0) + 5.0

    def action() -> torch.Tensor:
        return torch.rand(number, ACTION_DIM, generator=generator) * 2.0 - 1.0

    ends = torch.rand(2, number, 1, generator=generator) < 0.15
    following = {
        "observation": normal(len(COLUMNS)),
        "reward": normal(1),
        "terminated": ends[0],
        "truncated": ends[1],
        "done": ends.any(0),
    }
    rows = {"observation": normal(len(COLUMNS)), "action": action()}
    if next_action:
        following["action"] = action()
    if embedding_dim:
        rows["embedding"] = normal(embedding_dim)
    return TensorDict(rows | {"next": TensorDict(following, [number])}, [number])


def toy_writer(path, number: int = 10, **changes) -> TransitionWriter:
    """A writer of toy rows."""
    wanted = {
        "columns": COLUMNS,
        "action_dim": ACTION_DIM,
        "num_transitions": number,
        "ordered": False,
        "provenance": PROVENANCE,
    }
    return TransitionWriter(path, StoreInfo(**(wanted | changes)))


def toy_store(path, number: int = 10, **changes) -> TransitionStore:
    """A data set of toy rows."""
    with toy_writer(path, number, **changes) as writer:
        writer.append(toy_rows(number, changes.get("embedding_dim", 0), changes.get("has_next_action", False)))
        return writer.finish()


def assert_rows_equal(got, wanted) -> None:
    """Raise unless two TensorDicts have the same keys and the same numbers."""
    keys = set(wanted.keys(True, True))
    assert set(got.keys(True, True)) == keys
    for key in keys:
        assert got[key].dtype == wanted[key].dtype
        assert torch.equal(torch.as_tensor(got[key]), wanted[key]), key
