"""Doors of packages: exports load when they are used, and what is light stays light."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flowmatch_rl
from flowmatch_rl.doors import lazy_exports
from tests.cli.support import environment
from tests.combinations import one_test

ROOT = Path(flowmatch_rl.__file__).parent
DOORS = sorted(
    ".".join(("flowmatch_rl", *path.parent.relative_to(ROOT).parts))
    for path in ROOT.rglob("*/__init__.py")
    if "lazy_exports(__name__)" in path.read_text()
)
HEAVY = {"ot", "sklearn", "pandas", "mlflow", "torchrl", "gymnasium", "h5py", "imageio"}


def loaded(code: str, given: str = "") -> set[str]:
    """Top-level modules that a process holds after some code, but for those of the code before it."""
    look = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = "\n".join(["import json, sys", given, look, code, look])
    run = subprocess.run(
        [sys.executable, "-c", command], env=environment(), capture_output=True, text=True, check=True, timeout=120
    )
    lines = run.stdout.splitlines()
    return set(json.loads(lines[-1])) - set(json.loads(lines[0]))


@one_test
@pytest.mark.parametrize("package", DOORS)
def test_every_export_can_be_had_and_is_listed(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"{package}.*nothing_of_the_kind"):
        _ = module.nothing_of_the_kind


@one_test
@pytest.mark.parametrize("package", DOORS)
def test_no_export_has_the_name_of_a_module(package: str) -> None:
    folder = ROOT.joinpath(*package.split(".")[1:])
    modules = {path.stem for path in folder.iterdir()}
    assert not modules & set(importlib.import_module(package).__all__)


def test_a_door_knows_only_what_stands_under_type_checking() -> None:
    get, names = lazy_exports("flowmatch_rl.metrics")
    assert get("energy_distance").__module__ == "flowmatch_rl.metrics.distances"
    assert "energy_distance" in names()
    with pytest.raises(AttributeError):
        get("TYPE_CHECKING")


def test_a_library_that_does_not_load_is_not_taken_for_a_missing_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "house_with_a_door"
    folder.mkdir()
    door = ["from typing import TYPE_CHECKING", "from flowmatch_rl.doors import lazy_exports", "if TYPE_CHECKING:"]
    door += ["    from house_with_a_door.room import Thing", "__getattr__, __dir__ = lazy_exports(__name__)"]
    (folder / "__init__.py").write_text("\n".join(door))
    (folder / "room.py").write_text("None.eglQueryString")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"house_with_a_door\.room cannot be imported: .*eglQueryString"):
        importlib.import_module("house_with_a_door").Thing  # noqa: B018


def test_the_package_and_its_doors_are_light() -> None:
    code = "\n".join(f"import {name}" for name in DOORS if not name.endswith((".modules", ".inference")))
    assert not {"torch", "numpy", "lightning", "matplotlib", *HEAVY} & loaded(f"import flowmatch_rl\n{code}")


def test_a_policy_for_use_loads_little_but_torch_and_lightning() -> None:
    modules = loaded("from flowmatch_rl.inference import load_policy", given="import torch, lightning.pytorch")
    assert "flowmatch_rl" in modules
    assert not HEAVY & modules


def test_a_report_loads_neither_lightning_nor_environments() -> None:
    modules = loaded("from flowmatch_rl.experiments import write_report; from flowmatch_rl.cli import report")
    assert not {"lightning", "tensordict", "torchrl", "ot", "mlflow"} & modules


def test_the_front_door_is_light() -> None:
    code = "from flowmatch_rl.cli import run; assert run(['--help']) == run(['--version']) == 0"
    assert not {"torch", "numpy", "lightning", "jsonargparse", *HEAVY} & loaded(code)
