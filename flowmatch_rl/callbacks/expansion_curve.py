"""The figure of how far an occupancy's transitions are expanded."""

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch import Trainer

from flowmatch_rl.callbacks.curves import Curve, data_label, walls_of
from flowmatch_rl.evaluation import ExpansionPoint
from flowmatch_rl.figures import Figure, draw_expansion, plane_among


class ExpansionCurve(Curve[ExpansionPoint]):
    """Draws ``figures/expansion.png`` of a run that expands transitions, and writes its numbers to ``expansion.csv``.

    Every evaluation during training adds the fraction of the expansions that did not end early, and their mean length.
    Beside them the figure shows the lengths of the last expansions, and from where they ended early.
    """

    table: ClassVar = "expansion.csv"
    picture: ClassVar = "expansion.png"

    def __init__(self) -> None:
        super().__init__(ExpansionPoint)

    def measure(self, trainer: Trainer, seconds: float | None) -> ExpansionPoint | None:
        """How far expansions get; None of a run without."""
        module: Any = trainer.lightning_module
        sample = module.expansions
        if sample is None:
            return None
        return ExpansionPoint(trainer.global_step, sample.full_fraction, sample.mean_length)

    def draw(self, points: Sequence[ExpansionPoint], trainer: Trainer) -> Figure:
        """Fractions and lengths by gradient step, and the last expansions."""
        module: Any = trainer.lightning_module
        sample, label = module.expansions, data_label(trainer)
        plane = None
        if sample is not None:
            plane = plane_among(sample.schema, range(sample.schema.sample_dim), walls_of(trainer))
        return draw_expansion(points, sample, plane, f"{label}: expansions" if label else "expansions")
