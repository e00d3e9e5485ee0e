"""Updates on made-up transitions, to measure how long they take."""

import contextlib
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer
from tensordict import TensorDict

from flowmatch_rl.batches import ACTION, OBSERVATION, REWARD, TERMINATED
from flowmatch_rl.modules.actor_critic import ActorCritic


def trial_update(
    module: ActorCritic, batch_size: int, device: str = "cpu", dtype: torch.dtype | None = None
) -> Callable[[], None]:
    """One whole gradient update: forward, backward, clipping, Adam and target networks, on a fixed batch.

    Args:
        module: The module, which is moved to the device; every call of the function updates it.
        batch_size: Number of transitions B, drawn from the standard normal distribution; nothing is terminated.
        device: Device, such as ``cuda``.
        dtype: Type of the matrix products under autocast; that of the weights if None.

    Returns:
        Function that updates the module once.
    """
    module = module.to(device)
    module.trainer = Trainer(logger=False, log_every_n_steps=10**9, accelerator="auto", enable_checkpointing=False)
    optimizer = module.configure_optimizers()
    states, actions = (batch_size, module.observation_dim), (batch_size, module.action_dim)
    batch = TensorDict(
        {
            OBSERVATION: torch.randn(states),
            ACTION: 2.0 * torch.rand(actions) - 1.0,
            ("next", OBSERVATION): torch.randn(states),
            REWARD: torch.randn(batch_size, 1),
            TERMINATED: torch.zeros(batch_size, 1, dtype=torch.bool),
        },
        batch_size=[batch_size],
    ).to(device)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype) if dtype else contextlib.nullcontext():
            loss = module.loss(batch)
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        module.after_update()

    return update
