"""TensorDict keys, all of them TorchRL's, and the one place where a batch becomes a ``Transition``."""

from tensordict import TensorDictBase
from torch import Tensor

from flowmatch_rl.types import Transition

OBSERVATION = "observation"
ACTION = "action"
REWARD = ("next", "reward")
NEXT_OBSERVATION = ("next", "observation")
TERMINATED = ("next", "terminated")
DONE = ("next", "done")

TRANSITION = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION, TERMINATED)
"""The entries that a replay buffer keeps."""


def read_transition(batch: TensorDictBase) -> Transition:
    """Read a batch of transitions.

    Args:
        batch: TensorDict of batch size (B,) with the keys of ``TRANSITION``; rewards and flags of shape (B, 1).

    Returns:
        The transitions, with rewards and flags of shape (B,).

    Raises:
        KeyError: If an entry is missing; the message names it.
    """

    def read(key: str | tuple[str, str]) -> Tensor:
        value = batch.get(key, None)
        if value is None:
            held = sorted(map(str, batch.keys(include_nested=True, leaves_only=True)))
            raise KeyError(f"the batch lacks {key!r}; it holds {', '.join(held)}")
        return value

    return Transition(
        observation=read(OBSERVATION),
        action=read(ACTION),
        reward=read(REWARD).squeeze(-1),
        next_observation=read(NEXT_OBSERVATION),
        terminated=read(TERMINATED).squeeze(-1),
    )
