"""Small videos from frames."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from torch.nn.functional import interpolate

_MAX_GIF_BYTES = 3_000_000


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Shrink frames so that neither side exceeds a length; both become even, as video codecs want.

    Args:
        frames: RGB, shape (T, H, W, 3), bytes.
        side: Longest side of the result in pixels, at least 2.

    Returns:
        Frames of shape (T, H', W', 3), bytes; never larger than they were, but for an odd side of one pixel.
    """
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    size = [max(2, 2 * int(scale * length / 2)) for length in (height, width)]
    pixels = torch.from_numpy(frames).movedim(-1, 1)
    # One by one: all at once, as the floating-point numbers this makes of them, they take a gigabyte.
    shrunk = [interpolate(frame, size=size, mode="bilinear", antialias=True) for frame in pixels.split(1)]
    return torch.cat(shrunk).movedim(1, -1).contiguous().numpy()


def write_gif(path: Path, frames: np.ndarray, frames_per_second: float, side: int) -> None:
    """Write an endless GIF, smaller than asked where it would exceed three megabytes.

    Args:
        path: Target; its folder exists.
        frames: RGB, shape (T, H, W, 3), bytes.
        frames_per_second: Rate at which it plays.
        side: Longest side in pixels, at least 2.
    """
    # A GIF counts hundredths of a second; rounding the moments, not the durations, keeps its speed right.
    moments = np.round(np.arange(len(frames) + 1) * 100.0 / frames_per_second)
    durations_ms = (10 * np.diff(moments).astype(int)).tolist()
    data = b""
    for reduced in (side, side * 3 // 4, side // 2):
        # Thirty-two shades per colour are hard to tell from all of them, and halve the file.
        shades = (shrink(frames, reduced).astype(np.uint16) + 4) // 8 * 8
        pixels = shades.clip(max=255).astype(np.uint8)
        data = iio.imwrite("<bytes>", pixels, extension=".gif", plugin="pillow", duration=durations_ms, loop=0)
        if len(data) <= _MAX_GIF_BYTES:
            break
    path.write_bytes(data)


def write_mp4(path: Path, frames: np.ndarray, frames_per_second: float, side: int) -> None:
    """Write an MP4 (H.264); needs imageio-ffmpeg.

    Args:
        path: Target; its folder exists.
        frames: RGB, shape (T, H, W, 3), bytes.
        frames_per_second: Rate at which it plays.
        side: Longest side in pixels, at least 2.
    """
    iio.imwrite(path, shrink(frames, side), plugin="FFMPEG", fps=frames_per_second, macro_block_size=2)
