"""Clipping of gradients, and requirements on the trainer of modules that do it themselves."""

from collections.abc import Iterable

from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from flowmatch_rl.checks import UserError


def check_gradient_options(trainer: Trainer) -> None:
    """Refuse clipping by the trainer, which would have no effect.

    Args:
        trainer: The trainer.

    Raises:
        UserError: If it is configured to clip.
    """
    if trainer.gradient_clip_val is not None:
        raise UserError(
            "the model clips gradients itself, by max_gradient_norm: trainer.gradient_clip_val must be unset, got "
            f"{trainer.gradient_clip_val}"
        )


def clip_gradient(weights: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip the joint gradient of some weights as ``clip_grad_norm_`` does, which multiplies small ones by 1.

    Args:
        weights: The weights; those without a gradient are left out.
        max_norm: Norm that a larger gradient is scaled down to.

    Returns:
        Norm before, shape ().
    """
    weights = [weight for weight in weights if weight.grad is not None]
    norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None])
    # To look at the norm would wait for another device than the CPU.
    if norm.device.type != "cpu" or not max_norm / (norm + 1e-6) >= 1.0:
        clip_grads_with_norm_(weights, max_norm, norm)
    return norm


def fuses_adam(trainer: Trainer | None) -> bool:
    """Whether Adam should be one kernel: not under float16, whose scale it would take off after the clipping.

    Args:
        trainer: The trainer, or None outside of one.
    """
    return trainer is None or trainer.precision != "16-mixed"
