"""Headless rendering: the choice of an OpenGL backend, made before MuJoCo is imported."""

import ctypes.util
import importlib
import os
import sys
from typing import Any

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


def choose_backend() -> None:
    """Set ``MUJOCO_GL`` and ``PYOPENGL_PLATFORM`` to a backend whose library is installed, unless the user has.

    Without a library rendering is disabled, so that importing MuJoCo does not fail on a machine that only trains.
    """
    if sys.platform != "linux":
        return
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # for the pictures of classic control
    if "MUJOCO_GL" in os.environ:
        return
    backend = next((name for name, library in _LIBRARIES.items() if ctypes.util.find_library(library)), "disabled")
    os.environ["MUJOCO_GL"] = backend
    if backend != "disabled":
        os.environ["PYOPENGL_PLATFORM"] = backend


def reason_without_backend() -> str | None:
    """Why MuJoCo cannot render here, or None if a backend was chosen."""
    if os.environ.get("MUJOCO_GL") in ("disabled", "disable", "off", "false", "0"):
        return "no OpenGL library for headless rendering (install libegl1 or libosmesa6, or set MUJOCO_GL)"
    return None


_SCENE = """
<mujoco><worldbody>
  <light pos="0 0 3"/><geom type="plane" size="2 2 .1"/><geom type="sphere" size=".4" pos="0 0 .4" rgba="1 0 0 1"/>
</worldbody></mujoco>
"""


def render_frame(side: int = 64) -> str:
    """Let MuJoCo draw a ball on a plane, and say by which backend it did.

    Args:
        side: Height and width in pixels.

    Raises:
        RuntimeError: If there is no backend, or the picture has one colour only.
    """
    choose_backend()
    if reason := reason_without_backend():
        raise RuntimeError(reason)
    mujoco: Any = importlib.import_module("mujoco")  # which reads the choice
    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, side, side)
    renderer.update_scene(data)
    frame = renderer.render()
    renderer.close()
    if frame.min() == frame.max():
        raise RuntimeError("the picture has one colour only")
    return os.environ.get("MUJOCO_GL", "the system's window library")
