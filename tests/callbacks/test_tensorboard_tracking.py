"""What TensorBoard reads of a run: metrics, pictures, parameters, and a restart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmatch_rl.callbacks import TensorBoardTracker
from flowmatch_rl.callbacks.encoding import write_gif
from flowmatch_rl.figures import Figure, save_figure

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra 'tensorboard'"
)


@pytest.fixture
def log(tmp_path: Path) -> TensorBoardTracker:
    return begun(tmp_path)


def begun(folder: Path) -> TensorBoardTracker:
    tracker = TensorBoardTracker()
    tracker.begin_in(folder, "name", "fit", resumes=False)
    return tracker


def read(folder: Path) -> Any:
    read = event_accumulator.EventAccumulator(str(folder / "tensorboard" / "fit"))
    read.Reload()
    return read


def test_pictures_and_videos_are_kept_as_they_are_and_other_files_not_at_all(
    tmp_path: Path, log: TensorBoardTracker
) -> None:
    figure = Figure(figsize=(2.0, 1.0))
    figure.add_subplot().plot([1.0, 2.0])
    save_figure(figure, tmp_path / "a.png")
    write_gif(tmp_path / "b.gif", np.arange(4 * 16 * 32 * 3, dtype=np.uint8).reshape(4, 16, 32, 3), 10.0, 32)
    (tmp_path / "c.csv").write_text("x\n1\n")
    log.log_metrics({"train/loss": 0.5}, 7)
    for name in ("a.png", "b.gif", "c.csv"):
        log.log_file(tmp_path / name, "figures")
    log.close()
    kept = read(tmp_path)
    assert kept.Tags()["images"] == ["figures/a.png", "figures/b.gif"]
    for name in ("a.png", "b.gif"):
        (image,) = kept.Images(f"figures/{name}")
        assert (image.step, image.encoded_image_string) == (7, (tmp_path / name).read_bytes())
    assert (image.width, image.height) == (32, 16)


def test_parameters_and_tags_are_shown_without_metrics_named_beforehand(
    tmp_path: Path, log: TensorBoardTracker
) -> None:
    log.log_parameters({"model.discount": 0.5, "model.name": "a", "model.sizes": [1, 2], "model.none": None})
    log.set_tags({"commit": "abc"})
    log.close()
    kept = read(tmp_path)
    plugin = kept.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert all(word in plugin for word in (b"model.discount", b"model.sizes", b"[1, 2]"))
    assert "_hparams_/experiment" not in kept.Tags()["tensors"]
    assert b"abc" in kept.Tensors("tags/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path, log: TensorBoardTracker) -> None:
    for step in (1, 2, 3, 4):
        log.log_metrics({"a": float(step), "b": 0.0}, step)
    log.close()
    resumed = begun(tmp_path)
    for step in (3, 6):
        resumed.log_metrics({"a": 10.0 * step}, step)
    resumed.close()
    kept = read(tmp_path)
    assert [(event.step, event.value) for event in kept.Scalars("a")] == [(1, 1), (2, 2), (3, 30), (6, 60)]
    assert [event.step for event in kept.Scalars("b")] == [1, 2]
