"""Actions in [-1, 1] in place of those in the environment's unit."""

import torch
from torch import Tensor
from torchrl.data import Bounded, Composite
from torchrl.data.tensor_specs import TensorSpec
from torchrl.envs import Transform

from flowmatch_rl.batches import ACTION


class UnitActions(Transform):
    """Maps actions in [-1, 1] to a box. TorchRL's own transform refuses entries whose bounds are equal.

    Args:
        low: What -1 stands for, shape (A,).
        high: What 1 stands for, shape (A,).
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__(in_keys_inv=[ACTION], out_keys_inv=[ACTION])
        self.register_buffer("centre", (high + low) / 2)
        self.register_buffer("half_width", (high - low) / 2)

    def transform_action_spec(self, action_spec: TensorSpec) -> TensorSpec:
        """The box [-1, 1]."""
        spec = action_spec[ACTION] if isinstance(action_spec, Composite) else action_spec
        unit = Bounded(-1.0, 1.0, shape=spec.shape, device=spec.device, dtype=spec.dtype)
        if not isinstance(action_spec, Composite):
            return unit
        action_spec = action_spec.clone()
        action_spec[ACTION] = unit
        return action_spec

    def _inv_apply_transform(self, state: Tensor) -> Tensor:
        return state * torch.as_tensor(self.half_width) + torch.as_tensor(self.centre)
