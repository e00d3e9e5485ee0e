import importlib.util
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from tensordict import TensorDictBase

from flowmatch_rl.callbacks import encoding
from flowmatch_rl.callbacks.video import Video
from flowmatch_rl.data import OnlineData
from flowmatch_rl.envs import GymnasiumEnvironment, build_environment, roll_out_episodes
from tests.callbacks.stand_ins import stand_in_trainer, tiny_data

PENDULUM = GymnasiumEnvironment("Pendulum-v1")


def full_torque(tensordict: TensorDictBase) -> TensorDictBase:
    return tensordict.set("action", torch.ones(*tensordict.batch_size, 1))


def module(policy: Any = full_torque) -> Any:
    return SimpleNamespace(device=torch.device("cpu"), evaluation_policy=lambda: policy)


@dataclass
class StandInRenderer:
    """Films Pendulum as noise, at a rate of choice; raises a given error."""

    frames_per_second: float = 25.0
    error: Exception | None = None
    picture: Any = None
    env: Any = field(default_factory=lambda: build_environment(PENDULUM))
    drawn: int = 0

    def frame(self) -> Any:
        if self.error is not None:
            raise self.error
        self.drawn += 1
        return np.random.default_rng(self.drawn).integers(0, 255, (20, 40, 3), np.uint8) * (self.picture is None)


def film(folder: Path, video: Video, renderer: Any, policy: Any = full_torque) -> Path:
    data = SimpleNamespace(rendering_environment=lambda: renderer, acting_policy=lambda acts: acts)
    video.on_test_end(stand_in_trainer(folder, datamodule=data), module(policy))
    return folder / "videos" / f"episode.{video.format}"


def durations_ms(path: Path) -> list[float]:
    with iio.imopen(path, "r", plugin="pillow") as file:
        number = file.properties(index=...).n_images
        assert number is not None
        return [file.metadata(index=index)["duration"] for index in range(number)]


def the_only_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return record.getMessage()


def test_a_gif_has_the_frames_the_size_and_the_speed_of_the_episode(tmp_path: Path) -> None:
    trainer = stand_in_trainer(tmp_path, datamodule=tiny_data())
    Video(max_steps=12).on_test_end(trainer, module())
    frames = iio.imread(tmp_path / "videos" / "episode.gif", index=None)
    assert frames.shape == (12, 320, 320, 3)
    assert frames.std() > 5.0
    assert sum(durations_ms(tmp_path / "videos" / "episode.gif")) == 400  # 12 steps at 30 per second


@pytest.mark.parametrize(
    ("rate", "steps", "frames", "milliseconds"),
    [(25.0, 10, 10, 400), (40.0, 10, 5, 250), (100.0, 10, 3, 120), (10.0, 3, 3, 300), (30.0, 30, 30, 1000)],
)
def test_a_gif_plays_in_real_time_at_about_twenty_five_frames_per_second(
    tmp_path: Path, rate: float, steps: int, frames: int, milliseconds: int
) -> None:
    path = film(tmp_path, Video(max_steps=steps), StandInRenderer(rate))
    assert len(durations_ms(path)) == frames
    assert sum(durations_ms(path)) == milliseconds


def test_a_video_ends_with_its_episode(tmp_path: Path) -> None:
    path = film(tmp_path, Video(max_steps=1000), StandInRenderer(10.0))
    assert len(durations_ms(path)) == 200


def test_the_video_begins_where_the_first_evaluation_episode_does() -> None:
    data = tiny_data()
    evaluated = roll_out_episodes(build_environment(PENDULUM, 3), full_torque, data.eval_seed, max_steps=2)
    rendered = data.rendering_environment()
    torch.testing.assert_close(rendered.env.reset()["observation"], evaluated["observation"][0, 0])
    rendered.env.close()


@pytest.mark.parametrize(
    ("shape", "expected"), [((500, 400), (320, 256)), ((31, 51), (30, 50)), ((240, 321), (238, 320))]
)
def test_frames_are_shrunk_to_even_sides_and_never_enlarged(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    frames = np.full((2, *shape, 3), 200, np.uint8)
    shrunk = encoding.shrink(frames, 320)
    assert shrunk.shape == (2, *expected, 3)
    assert shrunk.dtype == np.uint8
    assert (shrunk == 200).all()


@pytest.mark.parametrize(("limit", "side"), [(3_000_000, 128), (100_000, 96), (50_000, 64), (1, 64)])
def test_a_gif_that_would_be_too_large_is_made_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, side: int
) -> None:
    monkeypatch.setattr(encoding, "_MAX_GIF_BYTES", limit)
    frames = np.random.default_rng(0).integers(0, 255, (6, 256, 256, 3), np.uint8)
    encoding.write_gif(tmp_path / "a.gif", frames, 25.0, 128)
    assert iio.imread(tmp_path / "a.gif", index=None).shape == (6, side, side, 3)


def test_an_mp4_has_the_frames_and_the_size_stated(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="the extra mp4 is not installed")
    frames = np.random.default_rng(0).integers(0, 255, (10, 120, 161, 3), np.uint8)
    encoding.write_mp4(tmp_path / "a.mp4", frames, 25.0, 320)
    assert iio.imread(tmp_path / "a.mp4", plugin="FFMPEG").shape == (10, 120, 160, 3)


def test_a_machine_without_opengl_writes_no_video_says_why_in_one_line_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    data = OnlineData(GymnasiumEnvironment("InvertedPendulum-v5"))
    Video(max_steps=3).on_test_end(stand_in_trainer(tmp_path, datamodule=data), module())
    message = the_only_warning(caplog)
    assert message.startswith("no video: ")
    assert "MUJOCO_GL" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []
    assert complaints == []  # of the half-made renderer, on its way out


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no display\nmany\nmore lines"), "no display"),
        (ImportError("pygame is not installed"), "pygame is not installed"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
    ids=repr,
)
def test_a_renderer_that_fails_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    renderer = StandInRenderer(error=error)
    path = film(tmp_path, Video(max_steps=3), renderer)
    assert the_only_warning(caplog) == f"no video: {reason}"
    assert not path.exists()
    assert renderer.env.is_closed


def test_a_data_module_that_cannot_render_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Video().on_test_end(stand_in_trainer(tmp_path, datamodule=SimpleNamespace()), module())
    assert the_only_warning(caplog).startswith("no video: ")


def test_frames_that_are_no_pictures_cost_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    renderer = StandInRenderer()
    renderer.frame = lambda: None  # what Gymnasium returns without a render mode
    film(tmp_path, Video(max_steps=3), renderer)
    assert the_only_warning(caplog).startswith("no video: expected bytes of shape (height, width, 3)")


def test_an_error_of_the_policy_is_not_hidden(tmp_path: Path) -> None:
    def broken(tensordict: TensorDictBase) -> TensorDictBase:
        raise ValueError("broken policy")

    with pytest.raises(ValueError, match="broken policy"):
        film(tmp_path, Video(max_steps=3), StandInRenderer(), broken)


def test_mp4_without_its_extra_costs_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    film(tmp_path, Video(format="mp4"), StandInRenderer())
    assert "extra 'mp4'" in the_only_warning(caplog)


@pytest.mark.parametrize(
    ("enabled", "change"), [(False, {}), (True, {"is_global_zero": False}), (True, {"fast_dev_run": True})], ids=str
)
def test_nothing_is_filmed_where_nothing_is_wanted(tmp_path: Path, enabled: bool, change: dict[str, Any]) -> None:
    renderer = StandInRenderer()
    data = SimpleNamespace(rendering_environment=lambda: renderer)
    Video(enabled).on_test_end(stand_in_trainer(tmp_path, datamodule=data, **change), module())
    assert renderer.drawn == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"format": "avi"}, {"max_side": 8}], ids=str)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Video(**arguments)
