"""Predictions from a checkpoint alone: the arguments that stand for data and model where none are named."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from flowmatch_rl.checkpoints import read_checkpoint
from flowmatch_rl.checks import UserError
from flowmatch_rl.cli.resuming import LAST
from flowmatch_rl.modules import FlowMatchingModel
from flowmatch_rl.schema import TableSchema
from flowmatch_rl.trust import allow_imports, find_class, in_file


def request_words(overlays: Sequence[Any]) -> list[str]:
    """Arguments that ask a checkpoint for samples; none if data or no checkpoint are named.

    Args:
        overlays: What the arguments of ``predict`` state, as nested dictionaries.

    Raises:
        UntrustedNameError: If the class of its model is another package's, which is neither imported nor allowed.
        UserError: If the checkpoint is not of a model of tables.
    """
    stated = [overlay for overlay in overlays if isinstance(overlay, dict)]
    paths = [overlay["ckpt_path"] for overlay in stated if isinstance(overlay.get("ckpt_path"), str)]
    if not paths or paths[-1] == LAST or any(_names_class(overlay.get("data")) for overlay in stated):
        return []
    for overlay in stated:
        allow_imports(overlay.get("allow_imports") or [])
    arguments = read_checkpoint(paths[-1], memory_map=True)["hyper_parameters"]
    schema = arguments.get("schema")
    if not isinstance(schema, TableSchema) or _short(arguments.get("_class_path")) != FlowMatchingModel.__name__:
        raise UserError(
            f"{paths[-1]} is not of a generative model, which alone predicts without data; name the configuration of "
            "its run with -c"
        )
    with in_file(paths[-1]):
        find_class(arguments["_class_path"])
    return [
        "--data=SampleRequests",
        f"--data.schema={json.dumps(dataclasses.asdict(schema))}",
        *(
            []
            if any(_names_class(overlay.get("model")) for overlay in stated)
            else [f"--model={arguments['_class_path']}"]
        ),
    ]


def _names_class(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and "class_path" in part)


def _short(path: Any) -> str:
    return str(path).rpartition(".")[2]
