"""Lets checkpoints that hold the package's dataclasses load with ``weights_only=True``."""

import dataclasses
import inspect

import torch

from flowmatch_rl import (
    couplings,
    estimators,
    evaluation,
    models,
    nets,
    objectives,
    paths,
    samplers,
    schema,
    solvers,
    testbeds,
)
from flowmatch_rl.modules import settings
from flowmatch_rl.modules.expansion import Expansion
from flowmatch_rl.modules.reflow import Reflow
from flowmatch_rl.modules.segments import ObservedSteps


def allow_dataclasses(*more: type) -> None:
    """Register every dataclass that the lower rooms export: they hold numbers, words and each other.

    Args:
        *more: Others of the kind, from rooms above.
    """
    rooms = (couplings, estimators, evaluation, models, nets, objectives, paths, samplers, solvers, testbeds)
    exported = [
        Expansion,
        ObservedSteps,
        Reflow,
        *more,
        *vars(schema).values(),
        *vars(settings).values(),
        *(getattr(room, name) for room in rooms for name in room.__all__),
    ]
    torch.serialization.add_safe_globals(
        [value for value in exported if inspect.isclass(value) and dataclasses.is_dataclass(value)]
    )
