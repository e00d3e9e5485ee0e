"""Metrics of an update within a step of the trainer that holds several of them."""

from collections.abc import Iterable, Mapping

from lightning.pytorch import LightningModule
from torch import Tensor


def publish(module: LightningModule, metrics: Mapping[str, Tensor | float], on_bar: Iterable[str] = ()) -> None:
    """Log now, to all loggers: those that ``log_dict`` tells hear of every n-th step of the trainer, not update.

    Args:
        module: The module that is trained.
        metrics: Metrics by name, ``step`` among them: their place on the x-axis.
        on_bar: Names of those that Lightning's progress bars show.
    """
    shown = {name: metrics[name] for name in on_bar}
    module.log_dict(shown, prog_bar=True, logger=False)
    module.log_dict({name: value for name, value in metrics.items() if name not in shown}, logger=False)
    values = {name: float(value) for name, value in metrics.items()}
    step = int(values.pop("step"))
    for logger in module.loggers:
        logger.log_metrics(values, step)
        logger.save()
