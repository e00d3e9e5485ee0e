"""Points of learning curves, and their means over runs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowmatch_rl.metrics import MeanCurve

__all__ = ["CurvePoint", "LossPoint", "MeanCurve", "PolicyPoint", "ReturnPoint", "columns_of", "names_of"]


@dataclass(frozen=True)
class CurvePoint:
    """What was measured at one step of a training; the first field of a child is the step."""


@dataclass(frozen=True)
class ReturnPoint(CurvePoint):
    """What is known at the end of an evaluation of an actor-critic; None where it was not measured.

    Attributes:
        env_steps: Environment steps so far.
        return_mean: Mean return of the evaluation episodes.
        return_std: Standard deviation of their returns.
        training_return: Mean return of the last episodes of the training itself.
        critic_loss: Critic loss, in squared units of the return.
        policy_loss: Policy loss, squared velocity.
        seconds: Wall time of the training so far, warm-up included, evaluations excluded.
    """

    env_steps: int
    return_mean: float | None = None
    return_std: float | None = None
    training_return: float | None = None
    critic_loss: float | None = None
    policy_loss: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class PolicyPoint(CurvePoint):
    """What is known at the end of an evaluation of a policy that learns from a data set; None where it is not.

    Attributes:
        gradient_steps: Gradient steps so far.
        return_mean: Mean return of the evaluation episodes.
        return_std: Standard deviation of their returns.
        success_rate: Fraction of them that solved the task, where the environment says so.
        critic_loss: Critic loss, in squared units of the return.
        policy_loss: Policy loss.
        held_out_loss: Loss on the transitions that training leaves out.
        seconds: Wall time of the training so far, evaluations excluded.
    """

    gradient_steps: int
    return_mean: float | None = None
    return_std: float | None = None
    success_rate: float | None = None
    critic_loss: float | None = None
    policy_loss: float | None = None
    held_out_loss: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class LossPoint(CurvePoint):
    """What is known at the end of an evaluation of a generative model; None where it was not measured.

    Attributes:
        gradient_steps: Gradient steps so far.
        train_loss: Loss of the last training batches.
        val_loss: Loss on held-out data.
        energy_distance: Energy distance of samples to held-out data, both standardised; near zero it may be negative.
        seconds: Wall time of the training so far, without evaluations.
    """

    gradient_steps: int
    train_loss: float | None = None
    val_loss: float | None = None
    energy_distance: float | None = None
    seconds: float | None = None


def names_of(point: CurvePoint) -> list[str]:
    """Names of the fields of a point, the step first."""
    return [field.name for field in dataclasses.fields(point)]


def columns_of(points: Sequence[CurvePoint]) -> dict[str, np.ndarray]:
    """The fields of the points of a curve, one row per point; NaN for what was not measured."""
    names = names_of(points[0])
    return {name: np.array([getattr(point, name) for point in points], dtype=float) for name in names}
