"""How points of a space are chosen, and which trials are given up early."""

import abc
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from flowmatch_rl.checks import check_range
from flowmatch_rl.experiments.sweeps.space import Dimension, Point

NAME = "sweep"
"""Name of the study, on which the brackets of Hyperband depend."""


class Sampler(abc.ABC):
    """Chooses points of a space.

    The point of a trial depends on the seed, the number of the trial and the trials before it alone: a sweep that was
    interrupted continues with the points that it would have had.
    """

    @abc.abstractmethod
    def point(self, space: Mapping[str, Dimension], study: optuna.Study, pruner: BasePruner) -> Point:
        """The point of the next trial.

        Args:
            space: The space.
            study: The trials before it.
            pruner: What gives trials up.
        """

    @abc.abstractmethod
    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """Number of points that there are; None for as many as one likes.

        Args:
            space: The space.
        """


@dataclass(frozen=True)
class TpeSampler(Sampler):
    """Tree-structured Parzen estimators: points that resemble the better trials more than the others.

    Args:
        startup_trials: Trials at random before the first that is chosen, at least 1.
        multivariate: Whether the keys are drawn together, so that what goes with what is learned too.
        seed: Seed.

    Reference:
        Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011; Watanabe, arXiv:2304.11127.
    """

    startup_trials: int = 10
    multivariate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("[1, inf)", startup_trials=self.startup_trials)
        check_range("[0, inf)", seed=self.seed)

    def point(self, space: Mapping[str, Dimension], study: optuna.Study, pruner: BasePruner) -> Point:
        """Draw a point."""
        seed = _seed(self.seed, study)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.startup_trials, multivariate=self.multivariate, seed=seed
        )
        return _ask(sampler, space, study, pruner)

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """None."""
        return None


@dataclass(frozen=True)
class RandomSampler(Sampler):
    """Independent points, evenly distributed.

    Args:
        seed: Seed.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_range("[0, inf)", seed=self.seed)

    def point(self, space: Mapping[str, Dimension], study: optuna.Study, pruner: BasePruner) -> Point:
        """Draw a point."""
        seed = _seed(self.seed, study)
        return _ask(optuna.samplers.RandomSampler(seed=seed), space, study, pruner)

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """None."""
        return None


@dataclass(frozen=True)
class GridSampler(Sampler):
    """Every combination, the last key of the space changing first.

    Args:
        points: Values of an interval that has no step, at least 2; a whole interval has all of its numbers, unless it
            is logarithmic.
    """

    points: int = 5

    def __post_init__(self) -> None:
        check_range("[2, inf)", points=self.points)

    def point(self, space: Mapping[str, Dimension], study: optuna.Study, pruner: BasePruner) -> Point:
        """The combination that has the number of the trial."""
        number = len(study.get_trials(deepcopy=False))
        values = itertools.product(*(dimension.grid(self.points) for dimension in space.values()))
        return dict(zip(space, next(itertools.islice(values, number, None)), strict=True))

    def size(self, space: Mapping[str, Dimension]) -> int | None:
        """Number of combinations."""
        total = 1
        for dimension in space.values():
            total *= len(dimension.grid(self.points))
        return total


def _seed(seed: int, study: optuna.Study) -> int:
    """Seed of the next trial, other ones for other sweeps."""
    return (seed * 1_000_003 + len(study.get_trials(deepcopy=False))) % 2**32


def _ask(sampler: BaseSampler, space: Mapping[str, Dimension], study: optuna.Study, pruner: BasePruner) -> Point:
    """A point of one of Optuna's samplers, drawn from a copy of the trials: a killed process leaves no half a trial."""
    copy = optuna.create_study(study_name=NAME, direction=study.direction, sampler=sampler, pruner=pruner)
    copy.add_trials(study.get_trials(deepcopy=False))
    return copy.ask({key: dimension.distribution for key, dimension in space.items()}).params


class Pruner(abc.ABC):
    """Gives up trials whose evaluations are worse than those of others after as many steps."""

    @abc.abstractmethod
    def make(self) -> BasePruner:
        """Optuna's object."""

    @property
    @abc.abstractmethod
    def prunes(self) -> bool:
        """Whether it ever gives up a trial, and needs its evaluations for that."""


@dataclass(frozen=True)
class NoPruner(Pruner):
    """Runs every trial to its end."""

    def make(self) -> BasePruner:
        """One that does nothing."""
        return optuna.pruners.NopPruner()

    @property
    def prunes(self) -> bool:
        """False."""
        return False


@dataclass(frozen=True)
class MedianPruner(Pruner):
    """Gives up a trial whose best evaluation so far is worse than the median of the others after as many steps.

    Args:
        startup_trials: Trials that must have ended before one is given up, at least 1.
        warmup_steps: Steps of a run, such as environment steps, before which it is not given up.
    """

    startup_trials: int = 5
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_range("[1, inf)", startup_trials=self.startup_trials)
        check_range("[0, inf)", warmup_steps=self.warmup_steps)

    def make(self) -> BasePruner:
        """Optuna's median pruner."""
        return optuna.pruners.MedianPruner(self.startup_trials, self.warmup_steps)

    @property
    def prunes(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class HyperbandPruner(Pruner):
    """Successive halving in several brackets, which give trials up early or late.

    Args:
        min_steps: Steps of a run before which none is given up, such as those up to the first evaluation.
        max_steps: Steps of a whole run.
        reduction_factor: One of how many is kept at each stage, at least 2.

    Reference:
        Li et al., arXiv:1603.06560.
    """

    min_steps: int
    max_steps: int
    reduction_factor: int = 3

    def __post_init__(self) -> None:
        check_range("[1, inf)", min_steps=self.min_steps)
        check_range(f"[{self.min_steps}, inf)", max_steps=self.max_steps)
        check_range("[2, inf)", reduction_factor=self.reduction_factor)

    def make(self) -> BasePruner:
        """Optuna's Hyperband."""
        return optuna.pruners.HyperbandPruner(self.min_steps, self.max_steps, self.reduction_factor)

    @property
    def prunes(self) -> bool:
        """True."""
        return True
