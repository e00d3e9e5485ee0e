"""What modules that clip gradients themselves ask of a trainer."""

from lightning.pytorch import Trainer


def check_gradient_options(trainer: Trainer) -> None:
    """Refuse a clipping by the trainer, which would not be done.

    Args:
        trainer: The trainer.

    Raises:
        ValueError: If it is told to clip.
    """
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            "the model clips gradients itself, by max_gradient_norm: trainer.gradient_clip_val must be unset, got "
            f"{trainer.gradient_clip_val}"
        )


def fuses_adam(trainer: Trainer | None) -> bool:
    """Whether Adam should be one kernel: not under float16, whose scale it would take off after the clipping.

    Args:
        trainer: The trainer, or None outside of one.
    """
    return trainer is None or trainer.precision != "16-mixed"
