"""Predictions from a checkpoint alone: the arguments that stand for data and model where none are named."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowmatch_rl.checks import UserError
from flowmatch_rl.modules import FlowMatchingModel
from flowmatch_rl.schema import TableSchema


def request_words(overlays: Sequence[Any], read: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Arguments that ask a checkpoint for samples; none if data or no checkpoint are named.

    Args:
        overlays: What the arguments of ``predict`` state, as nested dictionaries.
        read: Reads a checkpoint.

    Raises:
        UserError: If the checkpoint is not of a model of tables.
    """
    stated = [overlay for overlay in overlays if isinstance(overlay, dict)]
    paths = [overlay["ckpt_path"] for overlay in stated if isinstance(overlay.get("ckpt_path"), str)]
    if not paths or any(_names_class(overlay.get("data")) for overlay in stated):
        return []
    arguments = read(paths[-1])["hyper_parameters"]
    schema = arguments.get("schema")
    if not isinstance(schema, TableSchema) or _short(arguments.get("_class_path")) != FlowMatchingModel.__name__:
        raise UserError(
            f"{paths[-1]} is not of a generative model, which alone predicts without data; name the configuration of "
            "its run with -c"
        )
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
