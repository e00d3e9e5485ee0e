"""The plan of a sweep: a configuration, the space laid over it, and how it is searched."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.experiments.plan import (
    Job,
    Options,
    check_options,
    check_seeds,
    option,
    read_file,
)
from flowmatch_rl.experiments.sweeps.search import MedianPruner, Pruner, Sampler, TpeSampler
from flowmatch_rl.experiments.sweeps.space import Dimension, Point, in_words, plain, read_space
from flowmatch_rl.redaction import redact_all

TRIALS = "trials"
"""Folder of the trials in that of a sweep."""


@dataclass(frozen=True)
class Sweep:
    """A configuration, the space laid over it, and how it is searched.

    Args:
        base: Configuration files, in the order in which they are laid over each other.
        space: What is searched, by the key of any option of ``fit``: ``float: [low, high]`` or ``int: [low, high]``,
            each with ``log: true`` or a ``step`` if wanted; ``choices``, a list of values or values by name; or, under
            a name of one's own, ``overlays``, configuration files by name.
        options: Further options of ``fit`` for all trials, by name.
        trials: Number of trials.
        seeds: Seeds of the runs of a trial, whose mean is its value. Pruning looks at the first one, and the others
            are trained when it has ended.
        metric: Metric of the final test, such as ``return_mean``; that by which a model chooses its best checkpoint if
            None, the return for a policy.
        direction: Whether the highest or the lowest value is the best; needed with ``metric``.
        prune_by: What evaluations during training are compared by, a column of the learning curve; that of the metric
            if None.
        sampler: How points of the space are chosen.
        pruner: Which trials are given up early.
        timeout_s: Seconds after which the command begins no more trials; those that run are trained to their end.
        tracking: Whether MLflow tracks the runs, under a common parent.

    Raises:
        UserError: If an entry or a file does not fit.
    """

    base: list[str]
    space: Options
    options: Options = field(default_factory=dict)
    trials: int = 20
    seeds: Sequence[int] = (0,)
    metric: str | None = None
    direction: Literal["max", "min"] | None = None
    prune_by: str | None = None
    sampler: Sampler = TpeSampler()
    pruner: Pruner = MedianPruner()
    timeout_s: float | None = None
    tracking: bool = True

    def __post_init__(self) -> None:
        check_range("[1, inf)", trials=self.trials)
        check_range("(0, inf)", timeout_s=self.timeout_s)
        check_seeds(self.seeds)
        check_options("options", self.options, "sweep")
        for path in self.base:
            read_file("base", path)
        check_options("space", self.dimensions, "sweep")
        for name in self.options:
            for key in self.dimensions:
                if plain(key) == plain(name) or plain(key).startswith(plain(name) + "."):
                    what = "it" if plain(key) == plain(name) else key
                    raise UserError(f"options must not set {name}, where space has {what}; put it in a file of base")
        if self.metric is not None and self.direction is None:
            raise UserError(f"metric {self.metric} needs a direction, max or min")

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """The space, in the order in which its values are laid over each other."""
        return read_space(self.space)

    @property
    def num_trials(self) -> int:
        """Number of trials: a grid has no more than its combinations."""
        size = self.sampler.size(self.dimensions)
        return self.trials if size is None else min(self.trials, size)

    def jobs(self, output: Path, number: int, point: Point) -> list[Job]:
        """The runs of a trial, one for each seed.

        Args:
            output: Folder of the sweep.
            number: Number of the trial.
            point: Its values; a key without one stays as the files have it.
        """
        words = in_words(point)
        tags = {f"space/{plain(key)}": str(value) for key, value in point.items()} | {"trial": str(number)}
        return [
            Job(TRIALS, str(number), seed, folder, tuple(self._arguments(point, seed, folder)), words, (*tags.items(),))
            for seed in self.seeds
            for folder in [output / TRIALS / str(number) / str(seed)]
        ]

    def common(self) -> tuple[list[str], list[str]]:
        """Arguments of ``fit`` that all trials share: files, which come first, and options, which come last."""
        return [f"-c={path}" for path in self.base], [option(key, value) for key, value in self.options.items()]

    def overlays(self, point: Point) -> list[dict[str, Any]]:
        """What a point lays over the configuration, as nested dictionaries.

        Args:
            point: Its values.
        """
        return [
            overlay for key, dimension in self.dimensions.items() for overlay in dimension.overlays(key, point[key])
        ]

    def probes(self) -> Iterator[tuple[str | None, Point]]:
        """Points that are tried before the first trial: with each value of each key once, the others at their first.

        Yields:
            The key that has another value than at the first point, None there, and the point.
        """
        first = {key: dimension.ends()[0] for key, dimension in self.dimensions.items()}
        yield None, first
        for key, dimension in self.dimensions.items():
            for value in dimension.ends()[1:]:
                yield key, {**first, key: value}

    def definition(self) -> dict[str, Any]:
        """What the trials depend on, with the contents of the files and without passwords; no comments, no layout."""
        definition = {
            "layers": {str(place): read_file("base", path) for place, path in enumerate(self.base, 1)},
            "options": self.options,
            "space": {key: dimension.definition() for key, dimension in self.dimensions.items()},
            "seeds": list(self.seeds),
            "metric": self.metric,
            "direction": self.direction,
            "prune_by": self.prune_by,
            "sampler": repr(self.sampler),
            "pruner": repr(self.pruner),
        }
        return redact_all(definition)

    def contents(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Options by name, contents of files and overlays of the space, each with the entry of the plan that has it."""
        yield "options", self.options
        yield from (("base", read_file("base", path)) for path in self.base)
        for key, dimension in self.dimensions.items():
            for value in dimension.ends():
                yield from ((f"space.{key}", overlay) for overlay in dimension.overlays(key, value))

    def _arguments(self, point: Point, seed: int, folder: Path) -> Iterator[str]:
        files, options = self.common()
        chosen = [(key, dimension) for key, dimension in self.dimensions.items() if key in point]
        words = [word for key, dimension in chosen for word in dimension.arguments(key, point[key])]
        yield from files
        yield from (word for word in words if word.startswith("-c="))
        yield option("trainer.enable_progress_bar", False)
        if not self.tracking:
            yield option("trainer.logger", False)
        yield from (word for word in words if not word.startswith("-c="))
        yield from options
        yield option("seed_everything", seed)
        yield option("trainer.default_root_dir", str(folder))
