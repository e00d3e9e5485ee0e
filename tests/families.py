"""The families of the package: a new member joins by one line and meets every test of its family."""

from flowmatch_rl.estimators import (
    ControlVariate,
    FisherControlVariate,
    FixedControlVariate,
    GradientControlVariate,
    LikelihoodProposal,
    NoControlVariate,
    ProductProposal,
    Proposal,
    RegressControlVariate,
)
from flowmatch_rl.nets import FirstSelection, GreedySelection, Selection, SoftmaxSelection
from flowmatch_rl.objectives import CappedSignalWeight, PowerWeight, TimeWeight, UniformWeight
from flowmatch_rl.paths import (
    CosineSchedule,
    LinearSchedule,
    LogitNormalTime,
    NoSquash,
    Schedule,
    Squash,
    TanhSquash,
    TimeDistribution,
    UniformTime,
    VariancePreservingSchedule,
)
from flowmatch_rl.solvers import RK4, Euler, Heun, Midpoint, Solver

SCHEDULES: list[Schedule] = [
    LinearSchedule(),
    LinearSchedule(sigma_min=0.1),
    CosineSchedule(),
    VariancePreservingSchedule(),
]

SOLVERS: list[tuple[type[Solver], int]] = [
    (Euler, 1),
    (Midpoint, 2),
    (Heun, 2),
    (RK4, 4),
]
"""Solvers with their order of accuracy."""

PROPOSALS: list[Proposal] = [
    LikelihoodProposal(),
    ProductProposal(),
    ProductProposal(base_variance=2.5),
]

CONTROL_VARIATES: list[ControlVariate] = [
    NoControlVariate(),
    GradientControlVariate(),
    FixedControlVariate(eta=0.3),
    RegressControlVariate(),
    FisherControlVariate(),
]

SELECTIONS: list[Selection] = [
    SoftmaxSelection(),
    GreedySelection(),
    FirstSelection(),
]

TIME_WEIGHTS: list[TimeWeight] = [
    UniformWeight(),
    PowerWeight(),
    CappedSignalWeight(),
]

TIME_DISTRIBUTIONS: list[TimeDistribution] = [
    UniformTime(),
    LogitNormalTime(),
    LogitNormalTime(mean=1.0, scale=0.5),
]

SQUASHES: list[Squash] = [
    TanhSquash(),
    NoSquash(),
]
