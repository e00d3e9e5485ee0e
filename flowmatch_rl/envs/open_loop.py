"""Policies that choose several actions at once, which are taken one after the other."""

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from flowmatch_rl.batches import ACTION, ACTION_CHUNK
from flowmatch_rl.checks import check_range


class OpenLoop(TensorDictModuleBase):
    """Takes the h actions of a chunk one after the other, and asks for another chunk then or where an episode begins.

    Reads ``observation`` and ``step_count``, the steps of the episode so far, writes ``action`` and the chunk that it
    is of, ``action_chunk``. One policy serves one environment, or one batch of them.

    Args:
        policy: Reads ``observation``, writes h actions side by side as ``action``.
        chunk: Actions h of a chunk, at least 1.

    Raises:
        UserError: If ``chunk`` is below 1.

    Reference:
        Li et al., arXiv:2507.07969 (Q-chunking).
    """

    def __init__(self, policy: TensorDictModuleBase, chunk: int) -> None:
        check_range("[1, inf)", action_chunk=chunk)
        super().__init__()
        self.in_keys = ["observation", "step_count"]
        self.out_keys = [ACTION, ACTION_CHUNK]
        self.policy, self.chunk = policy, chunk
        self._held: Tensor | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the next action of each environment."""
        place, held = tensordict.get("step_count") % self.chunk, self._held  # place of shape (*batch, 1)
        if held is None or bool((place == 0).any()):
            fresh: Tensor = self.policy(tensordict.select("observation")).get(ACTION)
            held = fresh if held is None else fresh.where(place == 0, held)
        self._held = held
        actions = held.unflatten(-1, (self.chunk, -1))  # (*batch, h, A)
        index = place[..., None].expand(*place.shape, actions.shape[-1])
        tensordict.set(ACTION_CHUNK, held)
        return tensordict.set(ACTION, actions.gather(-2, index).squeeze(-2))
