"""Headless rendering: the choice of an OpenGL backend, made before MuJoCo is imported."""

import ctypes.util
import os
import sys

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
