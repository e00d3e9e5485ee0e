"""Figures of a generative model, and noise becoming data as a video."""

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from flowmatch_rl.batches import Samples, read_samples
from flowmatch_rl.callbacks.artifacts import file_path, publish, write_figure, writes_files
from flowmatch_rl.callbacks.curves import data_label
from flowmatch_rl.callbacks.encoding import write_gif, write_mp4
from flowmatch_rl.checks import check_range, check_word
from flowmatch_rl.evaluation import (
    FlowSample,
    density_on_grid,
    describe_condition,
    distance_by_steps,
    field_on_grid,
    sample_flow,
)
from flowmatch_rl.figures import (
    draw_density,
    draw_field,
    draw_path,
    draw_samples,
    draw_steps,
    draw_trajectories,
    flow_frames,
)

_FRAMES_PER_SECOND = 20.0
_FRAMES, _PAUSE = 48, 24

_log = logging.getLogger(__name__)


class FlowFigures(Callback):
    """Draws a generative model's samples, flow and accuracy from the batch of the final evaluation.

    In ``figures``: ``samples.png``, samples beside held-out data; ``path.png``, the cloud between noise and data;
    ``trajectories.png``, trajectories of single samples; ``steps.png``, the distance to the data by number of network
    evaluations, unless the solver chooses its own steps. Of two columns also ``field.png``, the vector field, and,
    without conditions, ``density.png``, the density beside a histogram of the data. In ``videos``: ``flow.gif``, noise
    becoming data.

    Args:
        enabled: Whether to draw.
        num_samples: Samples beside the data, at most, at least 2; conditional ones take the conditions of the data.
        density_grid: Cells per column of the density, at most, at least 8.
        density_seconds: Time that the density may take, positive; large networks are drawn on fewer cells.
        video: ``gif``, ``mp4``, which needs the extra ``mp4``, or ``none``.
        max_side: Longest side of the video in pixels, at least 64.

    Raises:
        UserError: If a number or the kind of video is out of its range.
    """

    def __init__(
        self,
        enabled: bool = True,
        num_samples: int = 2000,
        density_grid: int = 96,
        density_seconds: float = 12.0,
        video: Literal["gif", "mp4", "none"] = "gif",
        max_side: int = 360,
    ) -> None:
        check_range("[2, inf)", num_samples=num_samples)
        check_range("[8, inf)", density_grid=density_grid)
        check_range("(0, inf)", density_seconds=density_seconds)
        check_range("[64, inf)", max_side=max_side)
        check_word(("gif", "mp4", "none"), video=video)
        self.enabled = enabled
        self.num_samples = num_samples
        self.density_grid = density_grid
        self.density_seconds = density_seconds
        self.video = video
        self.max_side = max_side

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
        model, samples = module.model, read_samples(batch)
        label = _label(trainer, model.guidance)
        sample = sample_flow(model, samples, self.num_samples)
        steps = "" if model.sampler.steps is None else f" in {len(sample.t) - 1} steps"
        write_figure(trainer, draw_samples(sample, _titled(label, "samples beside data")), "samples.png")
        write_figure(trainer, draw_path(sample, _titled(label, f"the path from noise to data{steps}")), "path.png")
        trajectories = draw_trajectories(sample, _titled(label, f"trajectories from noise to data{steps}"))
        write_figure(trainer, trajectories, "trajectories.png")
        if model.schema.sample_dim == 2:
            self._draw_maps(trainer, model, samples, sample, label)
        errors = distance_by_steps(model, samples, 1000)
        if errors is not None:
            write_figure(trainer, draw_steps(errors, _titled(label, "accuracy by number of steps")), "steps.png")
        self._animate(trainer, sample, label)

    def _draw_maps(self, trainer: Trainer, model: Any, samples: Samples, sample: FlowSample, label: str) -> None:
        data = sample.view.show(sample.data)
        condition = None if samples.condition is None else samples.condition[:1]
        given = "" if condition is None else f" given {describe_condition(model.schema, condition)}"
        field = field_on_grid(model, condition, data)
        write_figure(trainer, draw_field(field, sample.view, _titled(label, f"vector field{given}")), "field.png")
        if condition is None:
            density = density_on_grid(model, sample, self.density_grid, self.density_seconds)
            write_figure(trainer, draw_density(density, data, sample.view, _titled(label, "density")), "density.png")

    def _animate(self, trainer: Trainer, sample: FlowSample, label: str) -> None:
        if self.video == "none":
            return
        if self.video == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
            _log.warning("no video: format mp4 needs imageio-ffmpeg; install the extra 'mp4', or use gif")
            return
        frames = flow_frames(sample, label, _FRAMES, self.max_side)
        frames = np.concatenate([frames, frames[-1:].repeat(_PAUSE, axis=0)])
        path = file_path(trainer, "videos", f"flow.{self.video}")
        write = write_gif if self.video == "gif" else write_mp4
        write(path, frames, _FRAMES_PER_SECOND, self.max_side)
        publish(trainer, path, "videos")


def _label(trainer: Trainer, guidance: float) -> str:
    return ", ".join(
        part for part in (data_label(trainer), "" if guidance == 1.0 else f"guidance {guidance:g}") if part
    )


def _titled(label: str, what: str) -> str:
    return f"{label}: {what}" if label else what
