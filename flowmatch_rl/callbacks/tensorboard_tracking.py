"""Tracking in TensorBoard's event files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v3 as imageio
from lightning.fabric.utilities.rank_zero import rank_zero_only

from flowmatch_rl.callbacks.addresses import LOCAL_FOLDER
from flowmatch_rl.callbacks.run_logger import RunLogger, import_extra
from flowmatch_rl.checks import check_range
from flowmatch_rl.files import shown

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_EVENTS = "brain.Event:2"
"""Version of event files whose restarts are marked."""


class TensorBoardTracker(RunLogger):
    """TensorBoard's record of a run, ``tensorboard`` in its folder; needs the extra ``tensorboard``.

    It holds metrics, parameters, figures and videos in the format ``gif``, and configuration and tags as texts; tables
    and checkpoints stay in the run's folder. ``tensorboard --logdir runs`` shows the runs of a folder. A run that is
    resumed continues its record: what it repeats replaces what was there.

    Args:
        flush_s: Seconds between two times that metrics are written to the disk, above 0.

    Raises:
        UserError: If TensorBoard is not installed, or the number is not above 0.
    """

    def __init__(self, flush_s: int = 10) -> None:
        super().__init__()
        check_range("(0, inf)", flush_s=flush_s)
        import_extra("torch.utils.tensorboard", "TensorBoardTracker", "tensorboard")
        self._flush_s = flush_s
        self._folder = Path(LOCAL_FOLDER) / "tensorboard" / "run"
        self._writer: SummaryWriter | None = None
        self._step: int | None = None

    def begin_in(self, folder: Path, name: str, command: str, resumes: bool) -> None:
        """Choose the folder of the event files.

        Args:
            folder: The run's folder.
            name: Name of the run; TensorBoard shows the path of its folder.
            command: What is run; each command has a folder of its own.
            resumes: Whether the run continues another one.
        """
        self._folder = folder / "tensorboard" / command

    @property
    def name(self) -> str:
        """Path of the folder of the event files."""
        return str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Track metrics.

        Args:
            metrics: Numbers by name.
            step: Step that they belong to.
        """
        writer = self._open()
        if self._step is None:
            self._mark_start(step or 0)
        self._step = step or 0
        for name, value in metrics.items():
            writer.add_scalar(name, float(value), self._step)

    def _mark_start(self, step: int) -> None:
        """Take what the record holds from this step on for that of a run which was broken off."""
        events = import_extra("tensorboard.compat.proto.event_pb2", "TensorBoardTracker", "tensorboard")
        self._add(events.Event(step=step, file_version=_EVENTS))
        self._add(events.Event(step=step, session_log=events.SessionLog(status=events.SessionLog.START)))

    @rank_zero_only
    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Track parameters, beside which TensorBoard shows the latest value of each metric.

        Args:
            parameters: Values by name; lists and objects are kept as text.
        """
        summary = import_extra("torch.utils.tensorboard.summary", "TensorBoardTracker", "tensorboard")
        values = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in parameters.items()}
        # Without the first of the three, which names the metrics beforehand, TensorBoard takes all.
        _, start, _ = summary.hparams(values, {})
        self._add_summary(start)

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Track tags as a table.

        Args:
            tags: Values by name.
        """
        rows = [f"| {name} | {value} |" for name, value in tags.items()]
        self._open().add_text("tags", "\n".join(["| tag | value |", "|---|---|", *rows]))

    @rank_zero_only
    def log_file(self, path: Path, folder: str = "") -> None:
        """Track a picture (``.png``, or ``.gif``, which moves) or a configuration; nothing for other files.

        Args:
            path: The file.
            folder: Folder among the run's files.
        """
        tag = f"{folder}/{path.name}".lstrip("/")
        if path.suffix == ".yaml":
            self._open().add_text(tag, f"```yaml\n{path.read_text()}\n```")
        elif path.suffix in (".png", ".gif"):
            summaries = import_extra("tensorboard.compat.proto.summary_pb2", "TensorBoardTracker", "tensorboard")
            height, width = imageio.improps(path, index=0).shape[:2]
            image = summaries.Summary.Image(height=height, width=width, colorspace=3)
            image.encoded_image_string = path.read_bytes()
            self._add_summary(summaries.Summary(value=[summaries.Summary.Value(tag=tag, image=image)]))

    def lines(self) -> list[str]:
        """Where the record is, and how to open it."""
        place = shown(self._folder)
        return [f"tracking     {place}", f"open it      tensorboard --logdir {place}"]

    @rank_zero_only
    def save(self) -> None:
        """Write what is left to the disk."""
        if self._writer is not None:
            self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left to the disk."""
        self.save()

    @rank_zero_only
    def close(self) -> None:
        """Write what is left to the disk, and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> "SummaryWriter":
        if self._writer is None:
            torchs = import_extra("torch.utils.tensorboard", "TensorBoardTracker", "tensorboard")
            self._writer = torchs.SummaryWriter(str(self._folder), flush_secs=self._flush_s)
        assert self._writer is not None
        return self._writer

    def _add_summary(self, summary: Any) -> None:
        file: Any = self._open().file_writer
        file.add_summary(summary, self._step)

    def _add(self, event: Any) -> None:
        file: Any = self._open().file_writer
        file.add_event(event)
