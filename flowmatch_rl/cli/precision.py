"""The precision of a run: chosen by what the device does fast, or by the user."""

from typing import Any

from lightning.pytorch import Trainer

from flowmatch_rl.checks import UserError
from flowmatch_rl.devices import device_name, has_fast_bfloat16

_KNOWN = ("auto", "32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


class RunTrainer(Trainer):
    """The Trainer, with a precision that may be chosen by what the device does fast.

    Args:
        precision: 32-true, bf16-mixed, 16-mixed, or ``auto``: bf16-mixed where the device multiplies bfloat16 fast, and
            else 32-true. Data and environments are in single precision, which weights in another one would not fit.

    Raises:
        UserError: If the precision is another.
    """

    def __init__(self, *args: Any, precision: str | int | None = None, **kwargs: Any) -> None:
        chosen, _ = choose_precision(precision, str(kwargs.get("accelerator", "auto")))
        super().__init__(*args, precision=chosen, **kwargs)


def choose_precision(precision: str | int | None, accelerator: str) -> tuple[Any, str]:
    """What a precision stands for on a device.

    Args:
        precision: What the user stated, or None.
        accelerator: Name of a Lightning accelerator.

    Returns:
        The precision as the Trainer takes it, and what to say about it in one line; nothing if it is as expected.

    Raises:
        UserError: If models and data can't be in that precision.
    """
    if precision is not None and str(precision) not in _KNOWN:
        raise UserError(
            f"trainer.precision must be one of {', '.join(_KNOWN[:4])}, since data and environments are in single "
            f"precision; got {precision}"
        )
    fast, device = has_fast_bfloat16(accelerator), device_name(accelerator)
    if precision == "auto":
        chosen = "bf16-mixed" if fast else "32-true"
        reason = "multiplies bfloat16 fast" if fast else "does not multiply bfloat16 fast"
        return chosen, f"{chosen}, since {device} {reason}"
    if precision in ("bf16", "bf16-mixed") and not fast:
        return precision, f"{precision}, which {device} emulates, two to fifteen times more slowly than 32-true"
    return precision, ""
