"""Checkpoints of strangers: nothing in them is run, whatever they hold."""

import functools
import http.server
import importlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowmatch_rl.checks import UserError
from flowmatch_rl.inference import load_flow, load_occupancy, load_policy
from flowmatch_rl.modules import FlowMatchingModel, OccupancyModule, Reflow
from flowmatch_rl.modules.loading import build_module
from flowmatch_rl.testbeds import FunctionReward
from flowmatch_rl.trust import UntrustedNameError, reading_file
from tests.conftest import EVIL
from tests.inference.test_occupancy import checkpoint
from tests.modules.occupancy_toys import PLANE_POLICY, occupancy
from tests.strangers import ATTACKS, IGNORED, flow_content, occupancy_content, policy_content

LOADERS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "flow": (load_flow, flow_content),
    "occupancy": (load_occupancy, occupancy_content),
    "policy": (load_policy, policy_content),
}
REWARD = {
    "class_path": "flowmatch_rl.testbeds.FunctionReward",
    "init_args": {"function": f"{EVIL}:function", "columns": ["x"]},
}


def save(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "stranger.ckpt"
    torch.save(content, path)
    return path


def test_checkpoints_are_read_in_one_place() -> None:
    root = Path(__file__).parents[2]
    files = [path for room in ("flowmatch_rl", "benchmarks") for path in (root / room).rglob("*.py")]
    reading = [path.name for path in files if re.search(r"torch\.load\(|load_from_checkpoint\(", path.read_text())]
    assert reading == ["checkpoints.py"]


@pytest.mark.parametrize("kind", LOADERS)
def test_an_honest_checkpoint_of_the_command_line_is_loaded(kind: str, tmp_path: Path) -> None:
    load, content = LOADERS[kind]
    load(save(content(), tmp_path))


@pytest.mark.parametrize("force", [False, True], ids=["", "forced"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_checkpoint_names_is_run(attack: str, force: bool, marker, tmp_path, monkeypatch) -> None:
    if force:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for load, make in LOADERS.values():
        content = make()
        ATTACKS[attack](content, marker)
        path = save(content, tmp_path)
        with pytest.raises(UserError) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not marker.exists()
        assert EVIL not in sys.modules


@pytest.mark.parametrize("attack", IGNORED)
def test_what_names_code_elsewhere_in_a_checkpoint_is_not_looked_at(attack: str, marker: Path, tmp_path: Path) -> None:
    for load, make in LOADERS.values():
        content = make()
        IGNORED[attack](content, marker)
        load(save(content, tmp_path))
    assert not marker.exists()


def test_a_teacher_of_a_stranger_is_not_run(marker: Path, tmp_path: Path) -> None:
    content = flow_content(sampler={"class_path": f"{EVIL}.Model"})
    with pytest.raises(UserError, match=r"teacher cannot be loaded: .*stranger\.ckpt"):
        Reflow(str(save(content, tmp_path))).load(FlowMatchingModel, None)
    assert not marker.exists()


def test_an_address_is_refused_and_never_asked(tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    save(flow_content(), tmp_path)
    server = http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for load, _ in LOADERS.values():
            with pytest.raises(UserError, match="is an address; download"):
                load(f"http://127.0.0.1:{server.server_port}/stranger.ckpt")
    finally:
        server.shutdown()
        server.server_close()
    assert not asked


def test_samples_need_no_reward_of_a_module_that_is_not_there(marker: Path, tmp_path: Path) -> None:
    model = load_occupancy(save(occupancy_content(rewards={"mine": REWARD}), tmp_path))
    assert model.sample(4, np.zeros((2, 3)), np.zeros((2, 2))).shape == (2, 4, 3)
    assert not marker.exists()


def test_a_checkpoint_of_another_kind_is_named_with_what_loads_it(tmp_path: Path) -> None:
    wanted = {"flow": "a flow", "occupancy": "an occupancy", "policy": "a policy"}
    for kind, (_, content) in LOADERS.items():
        path = save(content(), tmp_path)
        for other, (load, _) in LOADERS.items():
            if other != kind:
                with pytest.raises(UserError) as caught:
                    load(path)
                assert str(caught.value) == (
                    f"{path} is a checkpoint of {wanted[kind]}, not of {wanted[other]}; what loads it is load_{kind}"
                )


OWN = """
from dataclasses import dataclass
from flowmatch_rl.samplers import OdeSampler
from flowmatch_rl.testbeds import LinearPolicy

class Sampler(OdeSampler):
    pass

@dataclass(frozen=True)
class Policy(LinearPolicy):
    pass

def first(values):
    return values[..., 0]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A module of the user's own, in reach and not imported; another one for every test."""
    name = f"own_{abs(hash(request.node.name))}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(OWN)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("how", ["imported", "allowed"])
def test_classes_of_a_users_own_are_loaded_once_they_are_imported_or_allowed(how: str, own: str, tmp_path) -> None:
    described = save(flow_content(sampler={"class_path": f"{own}.Sampler"}), tmp_path)
    with pytest.raises(
        UntrustedNameError,
        match=f"names the class '{own}.Sampler'.* import it first or allow it: allow in Python, --allow_imports",
    ):
        load_flow(described)
    assert own not in sys.modules
    if how == "imported":
        importlib.import_module(own)
    flow = load_flow(described, allow=() if how == "imported" else (own,))
    assert type(flow.model.sampler).__module__ == own


def test_objects_of_a_users_own_are_loaded_once_their_class_is_imported(own: str, tmp_path: Path) -> None:
    policy = importlib.import_module(own).Policy(gain=PLANE_POLICY.gain)
    path = checkpoint(occupancy(policy=policy), tmp_path)
    loaded = load_occupancy(path)
    assert type(loaded.model.policy) is type(policy)
    del sys.modules[own]
    with pytest.raises(UntrustedNameError, match=f"names the class '{own}.Policy'"):
        load_occupancy(path)
    assert own not in sys.modules


def test_a_function_of_a_users_own_is_found_once_its_module_is_imported(own: str, tmp_path: Path) -> None:
    reward = {"class_path": REWARD["class_path"], "init_args": {"function": f"{own}:first", "columns": ["x"]}}
    content = occupancy_content(rewards={"mine": reward})
    module = build_module(OccupancyModule, content, "own.ckpt")
    with pytest.raises(UntrustedNameError, match=f"the reward 'mine': the file names the function '{own}:first'"):
        module.check_rewards()
    importlib.import_module(own)
    module.check_rewards()


@pytest.mark.parametrize("function", ["os:system", "builtins:print", "torch:save", "flowmatch_rl.files:write_text"])
def test_a_function_of_python_or_of_what_is_installed_is_no_users_own(function: str) -> None:
    with reading_file():
        reward = FunctionReward(function, ("x",))
    with pytest.raises(UntrustedNameError, match="names the function"):
        reward.of_columns(torch.zeros(3, 1))
