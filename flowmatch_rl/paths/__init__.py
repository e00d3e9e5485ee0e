from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.paths.field import Field, guided
from flowmatch_rl.paths.gaussian import GaussianPath, gaussian_velocity
from flowmatch_rl.paths.mixture import GaussianMixture, Mixture
from flowmatch_rl.paths.points import PathPoints
from flowmatch_rl.paths.preconditioner import Preconditioner
from flowmatch_rl.paths.schedules import (
    CosineSchedule,
    LinearSchedule,
    Schedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from flowmatch_rl.paths.sources import GaussianSource, MixtureSource, Source, UniformSource
from flowmatch_rl.paths.squash import ClipSquash, NoSquash, Squash, TanhSquash
from flowmatch_rl.paths.times import (
    CosineMapTime,
    KumaraswamyTime,
    LogitNormalTime,
    TimeDistribution,
    UniformTime,
    UShapedTime,
    stratify,
)

__all__ = [
    "AffinePath",
    "ClipSquash",
    "CosineMapTime",
    "CosineSchedule",
    "Field",
    "GaussianMixture",
    "GaussianPath",
    "GaussianSource",
    "KumaraswamyTime",
    "LinearSchedule",
    "LogitNormalTime",
    "Mixture",
    "MixtureSource",
    "NoSquash",
    "PathPoints",
    "Preconditioner",
    "Schedule",
    "Source",
    "Squash",
    "TanhSquash",
    "TimeDistribution",
    "UShapedTime",
    "UniformSource",
    "UniformTime",
    "VarianceExplodingSchedule",
    "VariancePreservingSchedule",
    "gaussian_velocity",
    "guided",
    "stratify",
]
