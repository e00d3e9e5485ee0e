"""The command ``improve``: a policy for any reward, from an occupancy and the data it was learned from."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowmatch_rl.batches import TERMINATED
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.names import known_names
from flowmatch_rl.cli.parser import ALLOW_IMPORTS, make_parser, read_options, user_errors
from flowmatch_rl.cli.training import train
from flowmatch_rl.configuration import read_overlay, read_yaml
from flowmatch_rl.data import TransitionStore
from flowmatch_rl.data.futures import FutureSamples
from flowmatch_rl.experiments.improvement import (
    Draws,
    check_parts,
    check_sees_actions,
    condition_features,
    kept_futures,
    observation_features,
    support,
)
from flowmatch_rl.inference import load_occupancy
from flowmatch_rl.modules.dynamics import load_dynamics
from flowmatch_rl.modules.occupancy_actor_critic import OccupancyActorCritic
from flowmatch_rl.testbeds import FunctionReward, LabelledReward
from flowmatch_rl.trust import allow_imports, name_function
from flowmatch_rl.types import Policy, Reward

_OWN = (
    "--ckpt_path",
    "--reward",
    "--columns",
    "--path",
    "--futures",
    "--behavior",
    "--dynamics",
    "--draws",
    "--allow_imports",
)
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_UPDATES, _EVALUATIONS = 2_000, 1_000


def improve(args: Sequence[str]) -> int:
    """Train a policy for a reward from an occupancy.

    Args:
        args: Arguments after the command; those that are not its own are those of ``fit``.

    Returns:
        Exit status.
    """
    parser = make_parser(
        "improve",
        "Train a policy for any reward of the state from an occupancy. All other options are those of fit, whose model "
        "is OccupancyActorCritic and whose data are PolicyData.",
    )
    parser.known_names = known_names()
    parser.add_argument("--ckpt_path", type=str, required=True, help="Checkpoint of the occupancy.")
    parser.add_argument(
        "--reward",
        type=str,
        required=True,
        help="The reward: a class of flowmatch_rl.testbeds with its arguments, a YAML file of one, a function "
        "my_module:my_reward of states in torch, or a table of states with a column `reward`.",
    )
    parser.add_argument(
        "--columns", type=list[str] | None, default=None, help="Columns that a function takes, in order; all if null."
    )
    parser.add_argument("--path", type=str | None, default=None, help="Data set; that of the occupancy's run if null.")
    parser.add_argument(
        "--futures",
        type=str | None,
        default=None,
        help="File of the future states that values are made of; beside the checkpoint if null, where a second reward "
        "finds them.",
    )
    parser.add_argument(
        "--behavior",
        type=Policy | None,
        default=None,
        help="Policy whose actions are tried beside those of the occupancy's, such as a CheckpointPolicy.",
    )
    parser.add_argument(
        "--dynamics",
        type=str | None,
        default=None,
        help="Checkpoint of a one-step model (DynamicsModule) of the same data, in which the expected return is "
        "measured; the critics state it if null.",
    )
    parser.add_class_arguments(Draws, "draws")
    parser.add_argument("--allow_imports", type=list[str], default=[], help=ALLOW_IMPORTS)
    own, rest = _split(args)
    options = read_options(parser, own, [])
    allow_imports(options["allow_imports"])
    with user_errors():
        base = _prepare(options)
    return train("fit", [f"--config={json.dumps(base)}", *rest])


def _prepare(options: dict[str, Any]) -> dict[str, Any]:
    """Draw what is needed, look whether it carries the reward, and return the configuration of the run."""
    checkpoint = options["ckpt_path"]
    occupancy = load_occupancy(checkpoint, allow=options["allow_imports"])
    model, run = occupancy.model, _run_of(checkpoint)
    path = options["path"] or run.get("path")
    if path is None:
        raise UserError(f"there is no configuration of a run beside {checkpoint}; name its data set with --path")
    store = TransitionStore.open(path)
    draws, behavior = options["draws"], options["behavior"]
    if options["dynamics"] is not None:
        info = store.info
        load_dynamics(options["dynamics"], info.schema, info.action_dim, info.action_bounds)
    described, reward = _reward(options["reward"], options["columns"], occupancy.columns)
    if ends := int(store.transitions.get(TERMINATED).sum()):
        print(f"warning      {ends:,} transitions are terminal: an occupancy counts a terminal state's reward for ever")
    check_parts(model, store, behavior, reward)
    print(check_sees_actions(model, store), flush=True)
    futures = kept_futures(checkpoint, model, store, draws, behavior, options["futures"])
    samples = FutureSamples.load(futures)
    found = support(samples, store, reward, model.inputs.scale)
    weak = [f"{'warning':<12} {text}" for text in found.warnings(samples.columns)]
    print("\n".join([found.line(), *weak]), flush=True)
    features = observation_features(model)
    return {
        "model": {
            "class_path": OccupancyActorCritic.__name__,
            "init_args": {
                "discount": samples.discount,
                "dynamics": options["dynamics"],
                "critics": {"architecture": {"observations": dataclasses.asdict(features)}},
                "policy": {"network": condition_features(features)},
            },
        },
        "data": {
            "class_path": "PolicyData",
            "init_args": {
                "path": str(path),
                "reward": described,
                "futures": str(futures),
                "environment": run.get("environment"),
                "num_updates": _UPDATES,
                "epoch_updates": _EVALUATIONS,
                "verify": False,
            },
        },
    }


def _reward(given: str, columns: list[str] | None, known: tuple[str, ...]) -> tuple[Any, Reward]:
    """The reward that a user names, as configurations describe it and as an object."""
    described: Any
    if Path(given).suffix in (".yaml", ".yml"):
        described = read_overlay(given)
    elif Path(given).suffix == ".csv":
        described = {"class_path": LabelledReward.__name__, "init_args": {"path": given}}
    elif _FUNCTION.fullmatch(given):
        name_function(given)
        described = {
            "class_path": FunctionReward.__name__,
            "init_args": {"function": given, "columns": list(columns or known)},
        }
    else:
        described = read_yaml(given, "--reward")
        described = {"class_path": described} if isinstance(described, str) else described
    parser = make_parser("improve", "", with_files=False)
    parser.add_argument("--reward", type=Reward, required=True)
    reward = read_options(parser, [f"--reward={json.dumps(described)}"], [{"reward": described}])["reward"]
    if columns is not None and not isinstance(reward, FunctionReward):
        raise UserError(f"columns are those of a function, got {', '.join(columns)} with the reward {reward}")
    if isinstance(reward, LabelledReward):
        print(
            f"reward       learned from {reward.num_labels:,} labelled states; it explains {reward.explained:.0%} of "
            "the variance of labels left out"
        )
    return described, reward


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own arguments, and those of ``fit``."""
    own: list[str] = []
    rest: list[str] = []
    place = 0
    while place < len(args):
        name = args[place].partition("=")[0]
        mine = name in _OWN or name.startswith(("--draws.", "--behavior.")) or name in ("-h", "--help")
        part = own if mine else rest
        part.append(args[place])
        takes = "=" not in args[place] and place + 1 < len(args) and not args[place + 1].startswith(("--", "-c"))
        if takes and args[place].startswith("-"):
            place += 1
            part.append(args[place])
        place += 1
    return own, rest


def _run_of(checkpoint: str) -> dict[str, Any]:
    """Arguments of the data of the run that a checkpoint belongs to; none where its folder holds no configuration."""
    for folder in Path(checkpoint).resolve().parents[:2]:
        if (folder / "config.yaml").is_file():
            data = read_overlay(folder / "config.yaml").get("data")
            arguments = data.get("init_args") if isinstance(data, dict) else None
            return arguments if isinstance(arguments, dict) else {}
    return {}
