"""Imports point downward: the table of rooms, and a check of every file against it."""

import ast
import sys
from pathlib import Path

import pytest

import flowmatch_rl
from tests.combinations import one_test

PACKAGE = "flowmatch_rl"
ROOT = Path(flowmatch_rl.__file__).parent

GROUND = {
    "doors",
    "devices",
    "types",
    "batches",
    "schema",
    "shapes",
    "checks",
    "files",
    "generators",
    "interrupts",
    "seeds",
    "trust",
    "zoo",
    "checkpoints",
    "redaction",
    "ranks",
    "endings",
    "rounds",
    "publishing",
}
MATH = {
    "paths",
    "couplings",
    "solvers",
    "samplers",
    "estimators",
    "objectives",
    "metrics",
    "planning",
    "testbeds",
}
ROOF = "cli"

ROOMS: dict[str, tuple[set[str], set[str]]] = {
    # room: (rooms it may import from, third-party packages it may import)
    "types": ({"checks"}, {"torch"}),
    "shapes": (set(), {"torch"}),
    "checks": (set(), set()),
    "doors": (set(), set()),
    "devices": ({"checks"}, {"torch"}),
    "files": ({"checks"}, set()),
    "generators": (set(), {"torch", "numpy"}),
    "interrupts": (set(), set()),
    "seeds": (set(), set()),
    "redaction": (set(), set()),
    "trust": ({"checks"}, {"torch", "yaml"}),
    "zoo": ({"checks"}, set()),
    "checkpoints": ({"checks", "trust", "zoo"}, {"torch"}),
    "endings": (set(), set()),
    "rounds": (set(), set()),
    "publishing": (set(), {"torch", "lightning"}),
    "ranks": ({"checks", "checkpoints", "files"}, {"torch"}),
    "schema": ({"checks"}, {"torch"}),
    "batches": ({"types", "shapes", "checks"}, {"torch", "tensordict"}),
    "configuration": ({"checks"}, {"yaml", "jsonargparse", "lightning"}),
    "paths": (GROUND, {"torch"}),
    "couplings": (GROUND, {"torch", "scipy", "numpy", "ot"}),
    "solvers": (GROUND, {"torch", "torchdiffeq"}),
    "samplers": (GROUND | {"paths", "solvers"}, {"torch"}),
    "metrics": (GROUND, {"torch", "scipy", "numpy", "ot"}),
    "estimators": (GROUND | {"paths", "solvers", "samplers"}, {"torch"}),
    "objectives": (GROUND | {"paths", "solvers", "samplers"}, {"torch"}),
    "planning": (GROUND, {"torch"}),
    "testbeds": (GROUND | {"paths"}, {"torch", "numpy"}),
    "nets": (GROUND | MATH, {"torch"}),
    "models": (GROUND | MATH | {"nets"}, {"torch", "tensordict"}),
    "evaluation": (GROUND | MATH | {"nets", "models"}, {"torch", "numpy"}),
    "figures": (GROUND | {"evaluation"}, {"torch", "numpy", "matplotlib", "pandas"}),
    "envs": (
        GROUND | {"testbeds"},
        {"torch", "tensordict", "torchrl", "gymnasium", "numpy", "dm_control", "mujoco", "ogbench"},
    ),
    "data": (
        GROUND | {"testbeds", "envs"},
        {"torch", "tensordict", "torchrl", "lightning", "numpy", "scipy", "pandas", "h5py", "tqdm"},
    ),
    "modules": (GROUND | MATH | {"nets", "models", "evaluation"}, {"torch", "tensordict", "lightning"}),
    "callbacks": (
        GROUND | {"evaluation", "figures"},
        {"torch", "tensordict", "torchrl", "lightning", "mlflow", "wandb", "sqlalchemy", "psutil", "pynvml"}
        | {"imageio", "tqdm", "numpy", "pandas"},
    ),
    "inference": (GROUND | MATH | {"nets", "models", "evaluation", "modules"}, {"torch", "numpy"}),
    "experiments": (
        GROUND
        | MATH
        | {"nets", "models", "evaluation", "figures", "envs", "data", "modules", "callbacks", "inference"}
        | {"configuration"},
        {"torch", "lightning", "jsonargparse", "yaml", "pandas", "jinja2", "submitit", "tqdm"} | {"optuna", "numpy"},
    ),
    ROOF: (
        GROUND
        | MATH
        | {
            "nets",
            "models",
            "evaluation",
            "figures",
            "envs",
            "data",
            "modules",
            "callbacks",
            "inference",
            "experiments",
            "configuration",
        },
        {"torch", "lightning", "jsonargparse", "yaml", "mlflow", "packaging"},
    ),
}


def room_of(path: Path) -> str:
    """Room of a file, by its path inside the package; files of the package's own folder are rooms or the roof."""
    first = path.parts[0].removesuffix(".py")
    return ROOF if first in ("__init__", "__main__") else first


def imported_names(source: str) -> list[str]:
    """Dotted names that a file imports anywhere, a leading dot for a relative import."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # ``from flowmatch_rl import paths`` names a room only in the second half.
            names += [f"{module}.{alias.name}" for alias in node.names] if module == PACKAGE else [module]
    return names


def forbidden_imports(path: Path, source: str) -> list[str]:
    """Complaints about the imports of one file, ``path`` being relative to the package."""
    room = room_of(path)
    if room not in ROOMS:
        return [f"{path}: the room {room!r} is not in the table"]
    rooms, third_party = ROOMS[room]
    complaints = []
    for name in imported_names(source):
        top, _, rest = name.partition(".")
        if name.startswith("."):
            complaints.append(f"{path}: relative import {name}")
        elif top == PACKAGE:
            target = rest.partition(".")[0]
            target = target if target in ROOMS else ROOF
            if target not in rooms | {room}:
                complaints.append(f"{path}: {room} may not import {name}")
        elif top not in sys.stdlib_module_names and top not in third_party:
            complaints.append(f"{path}: {room} may not import {name}")
    return complaints


FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def test_the_package_has_files_to_check() -> None:
    assert {"types", "paths", "estimators"} <= {room_of(path) for path in FILES}


def test_imports_point_downward() -> None:
    assert [
        complaint for path in FILES for complaint in forbidden_imports(path, (ROOT / path).read_text("utf-8"))
    ] == []


@one_test
@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("paths/affine.py", "from flowmatch_rl.estimators import EndpointEstimate"),
        ("paths/affine.py", "from flowmatch_rl import estimators"),
        ("paths/affine.py", "import flowmatch_rl.solvers"),
        ("paths/affine.py", "import flowmatch_rl.solvers.fixed_step as solvers"),
        ("paths/affine.py", "import flowmatch_rl"),
        ("paths/affine.py", "from flowmatch_rl import __version__"),
        ("paths/affine.py", "from .. import estimators"),
        ("paths/affine.py", "from . import schedules"),
        ("paths/affine.py", "def f():\n    from flowmatch_rl.nets import VelocityNetwork"),
        ("paths/affine.py", "if TYPE_CHECKING:\n    from flowmatch_rl.modules import FlowModule"),
        ("paths/affine.py", "import os, tensordict"),
        ("types.py", "from flowmatch_rl.shapes import append_dims"),
        ("shapes.py", "import numpy as np"),
        ("keys.py", "from flowmatch_rl.paths import AffinePath"),
        ("solvers/fixed_step.py", "from flowmatch_rl.paths import AffinePath"),
        ("planning/search.py", "from flowmatch_rl.paths import AffinePath"),
        ("objectives/bellman.py", "from flowmatch_rl.nets import CriticEnsemble"),
        ("nets/critic.py", "from flowmatch_rl.models import Flow"),
        ("nets/critic.py", "import lightning.pytorch as pl"),
        ("data/replay.py", "from flowmatch_rl.paths import AffinePath"),
        ("data/replay.py", "from flowmatch_rl.modules import FlowModule"),
        ("callbacks/video.py", "from flowmatch_rl.modules import FlowModule"),
        ("callbacks/video.py", "from flowmatch_rl.data import envs"),
        ("modules/policy.py", "from flowmatch_rl.callbacks import Video"),
        ("modules/policy.py", "from flowmatch_rl.envs.environments import make"),
        ("modules/policy.py", "from flowmatch_rl.cli import main"),
        ("cli/__init__.py", "import pandas"),
        ("attic/old.py", "import math"),
    ],
)
def test_a_planted_upward_import_is_caught(path: str, source: str) -> None:
    assert len(forbidden_imports(Path(path), source)) == 1


@one_test
@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("paths/affine.py", "import abc, math\nimport torch.nn.functional as F\nfrom torch import Tensor"),
        (
            "paths/affine.py",
            "from flowmatch_rl.paths.schedules import Schedule\nfrom flowmatch_rl.types import Velocity",
        ),
        ("estimators/__init__.py", "from flowmatch_rl import paths, shapes"),
        (
            "callbacks/video.py",
            "import imageio.v3\nimport numpy as np\nfrom flowmatch_rl.figures import draw_policy",
        ),
        ("envs/environments.py", "from dm_control import suite\nfrom flowmatch_rl import batches"),
        ("modules/policy.py", "import lightning\nfrom flowmatch_rl.objectives import bellman_map"),
        ("__main__.py", "from flowmatch_rl.cli import main"),
        ("__init__.py", '__version__ = "0"'),
    ],
)
def test_downward_and_standard_library_imports_pass(path: str, source: str) -> None:
    assert forbidden_imports(Path(path), source) == []
