"""Files of a stranger: checkpoints and folders of runs whose code, were it run, would leave a file."""

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowmatch_rl.experiments.executors import LocalProcess
from flowmatch_rl.models import FlowPolicyArchitecture
from flowmatch_rl.modules import Critics, FlowMatchingModel, ReverseFlowActorCritic
from flowmatch_rl.nets import CriticArchitecture, VelocityArchitecture
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.testbeds import FunctionReward
from tests.conftest import EVIL
from tests.modules.occupancy_toys import occupancy

TABLE = TableSchema(("x", "y"), (0.0, 0.0), (1.0, 1.0))
NETWORK = dataclasses.asdict(VelocityArchitecture(hidden_dim=16, num_blocks=1))


class Payload:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def flow_content(**arguments: Any) -> dict[str, Any]:
    """Checkpoint of a small flow, as the command line writes one."""
    torch.manual_seed(0)
    built = FlowMatchingModel(TABLE, network=VelocityArchitecture(**NETWORK))
    return _by_command(built, {"schema": TABLE, "network": NETWORK} | arguments)


def occupancy_content(**arguments: Any) -> dict[str, Any]:
    """Checkpoint of a small occupancy, as the command line writes one."""
    built = occupancy(policy=None, columns=None, network=VelocityArchitecture(**NETWORK))
    network = {"class_path": "flowmatch_rl.nets.VelocityArchitecture", "init_args": NETWORK}
    stated = {"schema": built.schema, "action_dim": 2, "horizon": {"discount": 0.9}, "network": network}
    return _by_command(built, stated | arguments)


def policy_content(**arguments: Any) -> dict[str, Any]:
    """Checkpoint of a small actor-critic, as the command line writes one."""
    torch.manual_seed(0)
    network, critic = VelocityArchitecture(**NETWORK), CriticArchitecture(hidden_dim=16)
    parts = {"policy": FlowPolicyArchitecture(network=network), "critics": Critics(architecture=critic)}
    described = {"policy": {"network": NETWORK}, "critics": {"architecture": {"hidden_dim": 16}}}
    sizes = {"observation_dim": 3, "action_dim": 2}
    return _by_command(ReverseFlowActorCritic(**sizes, **parts), sizes | described | arguments)


def _by_command(built: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    kind = type(built)
    names = {
        "_class_path": f"{kind.__module__}.{kind.__qualname__}",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    content = {
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": names | arguments,
        "state_dict": built.state_dict(),
        "epoch": 0,
        "global_step": 0,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    built.on_save_checkpoint(content)
    return content


def _set(**arguments: Any) -> Callable[[dict[str, Any], Path], None]:
    return lambda content, marker: content["hyper_parameters"].update(arguments)


def _command(content: dict[str, Any], marker: Path) -> None:
    content["extra"] = Payload(os.system, f"touch '{marker}'")


def _subprocess(content: dict[str, Any], marker: Path) -> None:
    content["extra"] = Payload(subprocess.call, ["touch", str(marker)])


def _reduced_reward(content: dict[str, Any], marker: Path) -> None:
    content["extra"] = Payload(FunctionReward, f"{EVIL}:function", ("x",))


def _process(content: dict[str, Any], marker: Path) -> None:
    content["extra"] = Payload(LocalProcess, marker.parent / "folder", ("touch", str(marker)), {})


def _popen(content: dict[str, Any], marker: Path) -> None:
    content["hyper_parameters"]["sampler"] = {
        "class_path": "flowmatch_rl.callbacks.tracking.subprocess.Popen",
        "init_args": {"args": ["touch", str(marker)]},
    }


def _hidden_in_config(content: dict[str, Any], marker: Path) -> None:
    path = marker.with_name("words")
    path.write_text(f"class_path: {EVIL}.Model\n")
    content["hyper_parameters"]["sampler"] = str(path)


def _legacy(content: dict[str, Any], marker: Path) -> None:
    for name in ("hparams", "module_arguments"):
        content[name] = {"_class_path": f"{EVIL}.Model", "sampler": {"class_path": f"{EVIL}.Model"}}


IGNORED: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "instantiator": _set(_instantiator=f"{EVIL}.function"),
    "instantiator of another type": _set(_instantiator=["lightning", EVIL]),
    "arguments in older places": _legacy,
    "pickled reward": _reduced_reward,
}
"""What a stranger adds to the content of a checkpoint, and nobody looks at."""

ATTACKS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "pickled command": _command,
    "pickled process": _subprocess,
    "pickled process of the package": _process,
    "class of the model": _set(_class_path=f"{EVIL}.Model"),
    "class of the model by its name": _set(_class_path=f"{EVIL}.FlowMatchingModel"),
    "class of a part": _set(sampler={"class_path": f"{EVIL}.Model"}),
    "class of a part of a part": _set(
        sampler={
            "class_path": "flowmatch_rl.samplers.OdeSampler",
            "init_args": {"solver": {"class_path": f"{EVIL}.Model"}},
        }
    ),
    "class of a part of a default": _set(sampler={"init_args": {"solver": {"class_path": f"{EVIL}.Model"}}}),
    "word for a class": _set(sampler=f"{EVIL}.Model"),
    "word for a class in a default": _set(sampler={"init_args": {"solver": f"{EVIL}.Model"}}),
    "description in a word": _set(sampler=f'{{"class_path": "{EVIL}.Model"}}'),
    "file that describes": _hidden_in_config,
    "dict_kwargs": _set(
        sampler={
            "class_path": "flowmatch_rl.samplers.OdeSampler",
            "dict_kwargs": {"solver": {"class_path": f"{EVIL}.Model"}},
        }
    ),
    "another library inside the package": _popen,
}
"""What a stranger does to the content of a checkpoint; with the path of the file that must not appear."""
