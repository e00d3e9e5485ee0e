from flowmatch_rl.paths.affine import AffinePath
from flowmatch_rl.paths.schedules import CosineSchedule, LinearSchedule, Schedule, VariancePreservingSchedule
from flowmatch_rl.paths.squash import NoSquash, Squash, TanhSquash
from flowmatch_rl.paths.times import LogitNormalTime, TimeDistribution, UniformTime

__all__ = [
    "AffinePath",
    "CosineSchedule",
    "LinearSchedule",
    "LogitNormalTime",
    "NoSquash",
    "Schedule",
    "Squash",
    "TanhSquash",
    "TimeDistribution",
    "UniformTime",
    "VariancePreservingSchedule",
]
