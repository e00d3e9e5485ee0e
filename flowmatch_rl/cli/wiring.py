"""What goes with which data: callbacks, and the dimensions that flow from data to model."""

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback

from flowmatch_rl.callbacks import (
    ActionWriter,
    CalibrationFigure,
    Checkpoints,
    DynamicsFigures,
    EpisodeFigure,
    EpisodeWriter,
    ExpansionCurve,
    FlowFigures,
    LearningCurve,
    LossCurve,
    ModelLog,
    OccupancyFigures,
    PolicyCurve,
    PolicyFigures,
    PosteriorFigures,
    RankWatch,
    SampleWriter,
    ValueMapFigure,
    Video,
)
from flowmatch_rl.checks import UserError
from flowmatch_rl.data import BanditData, OfflineData, OnlineData, PolicyData, SampleData, SampleRequests
from flowmatch_rl.inference.serving import pack_policy
from flowmatch_rl.modules import (
    ActorCritic,
    BehaviorCloning,
    DynamicsModule,
    ForwardBackward,
    OccupancyActorCritic,
    OccupancyModule,
)

WITH_OPTIONS = {
    Checkpoints: "checkpoints",
    Video: "video",
    SampleWriter: "samples",
    FlowFigures: "figures",
    OccupancyFigures: "occupancy_figures",
    RankWatch: "ranks",
}
"""Callbacks with options of their own, and the name that these begin with."""


@dataclass(frozen=True)
class Wiring:
    """Callbacks of one kind of data or model.

    Attributes:
        added: Callbacks without options.
        dropped: Callbacks with options of their own that are of no use to it.
        introduction: What is learned from the data, a line to print before training; may be empty.
    """

    added: tuple[Callback, ...]
    dropped: tuple[type[Callback], ...]
    introduction: str = ""


@functools.singledispatch
def wiring(data: object) -> Wiring:
    """Callbacks for a data module; a kind of data that is not known gets none of them."""
    return Wiring((), (Video, SampleWriter, FlowFigures, OccupancyFigures))


@wiring.register
def _(data: OnlineData) -> Wiring:
    added = (LearningCurve(), PolicyFigures(), EpisodeFigure(), PosteriorFigures(), EpisodeWriter())
    return Wiring(added, (SampleWriter, FlowFigures, OccupancyFigures))


@wiring.register
def _(data: PolicyData) -> Wiring:
    curve, needs_episodes = PolicyCurve(), (PolicyFigures(), EpisodeFigure(), PosteriorFigures(), EpisodeWriter())
    if data.environment is None:
        return Wiring((curve,), (Video, SampleWriter, FlowFigures, OccupancyFigures))
    return Wiring((curve, *needs_episodes), (SampleWriter, FlowFigures, OccupancyFigures))


@wiring.register
def _(data: SampleData) -> Wiring:
    return Wiring((LossCurve(),), (Video, OccupancyFigures), data.description)


@wiring.register
def _(data: SampleRequests) -> Wiring:
    return Wiring((), (Video, FlowFigures, OccupancyFigures))


@wiring.register
def _(data: OfflineData) -> Wiring:
    return Wiring((LossCurve(),), (Video, FlowFigures))


@wiring.register
def _(data: BanditData) -> Wiring:
    return Wiring((LossCurve(), ActionWriter()), (Video, SampleWriter, FlowFigures, OccupancyFigures))


@functools.singledispatch
def model_wiring(model: object) -> Wiring:
    """Callbacks for a model, beside those of its data; a model that is not known gets none of its own."""
    return Wiring((), ())


@model_wiring.register
def _(model: OccupancyModule) -> Wiring:
    return Wiring((DynamicsFigures(), ExpansionCurve()), ())


@model_wiring.register
def _(model: BehaviorCloning) -> Wiring:
    return Wiring((ModelLog(pack_policy),), (PolicyFigures,))


@model_wiring.register
def _(model: ActorCritic) -> Wiring:
    return Wiring((CalibrationFigure(), ModelLog(pack_policy)), ())


@model_wiring.register
def _(model: OccupancyActorCritic) -> Wiring:
    return Wiring((CalibrationFigure(), ValueMapFigure(), ModelLog(pack_policy)), ())


@model_wiring.register
def _(model: DynamicsModule) -> Wiring:
    return Wiring((DynamicsFigures(),), (OccupancyFigures,))


@model_wiring.register
def _(model: ForwardBackward) -> Wiring:
    return Wiring((), (OccupancyFigures, SampleWriter))


def giver(name: str, model_class: Callable[[], str]) -> Callable[[Any], Any]:
    """A function that takes one dimension from a data module.

    Args:
        name: The dimension.
        model_class: Path of the model's class.

    Returns:
        Function of the data; its value is None where neither data nor model know the dimension.
    """

    def give(data: Any) -> Any:
        dimensions = getattr(data, "dimensions", {})
        if name not in dimensions:
            module, _, class_name = model_class().rpartition(".")
            model = getattr(importlib.import_module(module), class_name)
            argument = inspect.signature(model).parameters.get(name)
            if argument is not None and argument.default is inspect.Parameter.empty:
                given = ", ".join(dimensions) or "no dimensions"
                raise UserError(f"{model.__name__} needs {name}; {type(data).__name__} gives {given}")
        return dimensions.get(name)

    return give
