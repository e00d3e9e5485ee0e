"""A video of the trained policy."""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDictBase

from flowmatch_rl.batches import ACTION
from flowmatch_rl.callbacks.artifacts import file_path, publish, writes_files
from flowmatch_rl.callbacks.encoding import write_gif, write_mp4
from flowmatch_rl.checks import check_range, check_word

if TYPE_CHECKING:
    from torchrl.envs import EnvBase

_FOLDER = "videos"
_FRAMES_PER_SECOND = 25.0

_log = logging.getLogger(__name__)


class RenderedEnvironment(Protocol):
    """A single environment with a camera."""

    @property
    def env(self) -> "EnvBase":
        """The environment, with its transforms."""
        ...

    @property
    def frames_per_second(self) -> float:
        """Environment steps per second of simulated time."""
        ...

    def frame(self) -> np.ndarray:
        """Picture of the present state, RGB, shape (height, width, 3), bytes."""
        ...


class NoVideoError(Exception):
    """Why there is no video, in one line."""


class Video(Callback):
    """Films one episode of the final evaluation's policy as ``videos/episode.gif``, in real time.

    Where nothing can be rendered, one line says why, and the run continues.

    Args:
        enabled: Whether to film.
        max_steps: Environment steps filmed at most, at least 1.
        format: ``gif``, or ``mp4``, which needs the extra ``mp4``.
        max_side: Longest side of the picture in pixels, at least 16; a GIF above three megabytes is made smaller.

    Raises:
        UserError: If a number or the format is out of its range.
    """

    def __init__(
        self,
        enabled: bool = True,
        max_steps: int = 300,
        format: Literal["gif", "mp4"] = "gif",
        max_side: int = 320,
    ) -> None:
        check_range("[1, inf)", max_steps=max_steps)
        check_word(("gif", "mp4"), format=format)
        check_range("[16, inf)", max_side=max_side)
        self.enabled = enabled
        self.max_steps = max_steps
        self.format = format
        self.max_side = max_side

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Film an episode."""
        if not (self.enabled and writes_files(trainer)):
            return
        path, reason = None, ""
        with _quiet_destructors():
            try:
                path = self._film(trainer, pl_module)
            except NoVideoError as error:
                reason = str(error)
        if path is None:
            _log.warning("no video: %s", reason)
        else:
            publish(trainer, path, _FOLDER)

    def _film(self, trainer: Trainer, module: Any) -> Path:
        if self.format == "mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
            raise NoVideoError("format mp4 needs imageio-ffmpeg; install the extra 'mp4', or use format gif")
        with _rendering():
            rendered: RenderedEnvironment = trainer.datamodule.rendering_environment()  # pyright: ignore
        try:
            with _rendering():
                rate = rendered.frames_per_second
            stride = max(1, round(rate / _FRAMES_PER_SECOND))
            data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
            policy = data.acting_policy(module.evaluation_policy())
            frames = self._frames(rendered, policy, module.device, stride)
        finally:
            with _rendering():
                rendered.env.close()
        path = file_path(trainer, _FOLDER, f"episode.{self.format}")
        with _rendering():
            write = write_gif if self.format == "gif" else write_mp4
            write(path, frames, rate / stride, self.max_side)
        return path

    @torch.no_grad()
    def _frames(
        self,
        rendered: RenderedEnvironment,
        policy: Callable[[TensorDictBase], TensorDictBase],
        device: torch.device,
        stride: int,
    ) -> np.ndarray:
        """Every ``stride``-th frame of an episode, shape (T, H, W, 3)."""
        env = rendered.env
        frames: list[np.ndarray] = []
        state = env.reset()
        for step in range(self.max_steps):
            if step % stride == 0:
                frames.append(_frame(rendered))
            state.set(ACTION, policy(state.to(device))[ACTION].cpu())
            arrived = env.step(state)
            if bool(arrived["next", "done"].any()):
                break
            state = env.step_mdp(arrived)
        return np.stack(frames)


def _frame(rendered: RenderedEnvironment) -> np.ndarray:
    with _rendering():
        frame = np.array(rendered.frame())
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
        raise NoVideoError(f"expected bytes of shape (height, width, 3), the renderer gave {frame.dtype} {frame.shape}")
    return frame


@contextmanager
def _rendering() -> Iterator[None]:
    """Turn whatever a renderer raises into the one line a run prints about it."""
    try:
        yield
    except Exception as error:  # renderers fail in as many ways as there are libraries below them
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise NoVideoError(lines[0]) from error


@contextmanager
def _quiet_destructors() -> Iterator[None]:
    """Keep a renderer that failed to start from complaining again, at length, when it is destroyed."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
