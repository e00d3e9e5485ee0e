"""Figures of a model of future states."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import read_rollouts
from flowmatch_rl.callbacks.artifacts import write_figure, writes_files
from flowmatch_rl.callbacks.curves import data_label, walls_of
from flowmatch_rl.checks import check_range
from flowmatch_rl.evaluation import sample_futures, sample_values, with_members
from flowmatch_rl.figures import (
    draw_future_marginals,
    draw_future_states,
    draw_values,
    horizon,
    plane_of,
    subject,
)


class OccupancyFigures(Callback):
    """Draws a model of future states from the source states of the final evaluation, beside real trajectories.

    In ``figures``: ``future_states.png``, densities in the plane, where two entries of the state are a position;
    ``future_marginals.png``, histograms of the entries and the plane of their principal components, unless there are
    just two entries; ``values.png``, modelled values over those of roll-outs, where there are rewards and trajectories.

    Args:
        enabled: Whether to draw.
        num_states: Source states whose future states are drawn, at least 1.
        num_samples: Future states of each, at least 2.
        value_samples: Future states that the value of each source state of the test is estimated from, at least 2.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self, enabled: bool = True, num_states: int = 3, num_samples: int = 4000, value_samples: int = 1000
    ) -> None:
        check_range("[1, inf)", num_states=num_states)
        check_range("[2, inf)", num_samples=num_samples, value_samples=value_samples)
        self.enabled = enabled
        self.num_states = num_states
        self.num_samples = num_samples
        self.value_samples = value_samples

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw everything from the first batch."""
        if not (self.enabled and writes_files(trainer)) or batch_idx or dataloader_idx:
            return
        module: Any = pl_module
        model, label = module.model, data_label(trainer)
        rollouts = with_members(model, read_rollouts(batch))
        title = f"{label}: future states" if label else "future states"
        sample = sample_futures(model, rollouts, self.num_states, self.num_samples)
        plane = plane_of(sample, walls_of(trainer))
        what = f"{title}, {subject(sample)}"
        if plane is not None:
            write_figure(trainer, draw_future_states(sample, plane, what), "future_states.png")
        if sample.schema.sample_dim != 2:
            write_figure(trainer, draw_future_marginals(sample, what), "future_marginals.png")
        if module.rewards and rollouts.states is not None:
            values = sample_values(model, rollouts, module.rewards, self.value_samples)
            about = f"{label}: values" if label else "values"
            figure = draw_values(values, f"{about}, {horizon(model.horizon.discount)}")
            write_figure(trainer, figure, "values.png")
