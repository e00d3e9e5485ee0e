"""The choice of an OpenGL backend in a fresh process."""

import subprocess
import sys

import pytest

from tests.cli.support import environment

PROBE = """
import os, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "mujoco":
            print(os.environ.get("MUJOCO_GL"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Stop())
import {module}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is chosen")
@pytest.mark.parametrize("module", ["flowmatch_rl.data.collecting", "flowmatch_rl.envs.building"])
def test_the_backend_is_chosen_before_mujoco_is_imported(module: str) -> None:
    """It would take the one for screens; collecting.py imports TorchRL first, which imports it."""
    fresh = {name: value for name, value in environment().items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    command = [sys.executable, "-c", PROBE.format(module=module)]
    printed = subprocess.run(command, capture_output=True, text=True, env=fresh, check=True, timeout=300).stdout
    assert printed.strip() in ("egl", "osmesa", "disabled")
