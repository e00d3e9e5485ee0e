"""Requirements on the trainer of modules that clip gradients themselves."""

from lightning.pytorch import Trainer

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


def fuses_adam(trainer: Trainer | None) -> bool:
    """Whether Adam should be one kernel: not under float16, whose scale it would take off after the clipping.

    Args:
        trainer: The trainer, or None outside of one.
    """
    return trainer is None or trainer.precision != "16-mixed"
