"""The pieces of work of a laboratory, each done in a process of its own and kept in a file."""

import dataclasses
import functools
import inspect
import json
import logging
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer, seed_everything

from flowmatch_rl.checks import RunError, UserError
from flowmatch_rl.configuration import shorten
from flowmatch_rl.data import BanditData
from flowmatch_rl.estimators import EndpointEstimator
from flowmatch_rl.evaluation import estimator_errors
from flowmatch_rl.modules import BanditFlow
from flowmatch_rl.testbeds import Bandit

SHOWN_SAMPLES = 1_000
"""Samples of a policy that are kept for the figure."""


@dataclass(frozen=True)
class Training:
    """How each policy is trained and compared.

    Args:
        num_updates: Gradient steps, at least 1.
        batch_size: Points of the path per step, at least 1.
        eval_samples: Samples that distances are measured on, at least 2.
        accelerator: Where it runs: ``cpu``, ``cuda`` or another name that Lightning knows.
    """

    num_updates: int = 1_500
    batch_size: int = 256
    eval_samples: int = 3_000
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        if min(self.num_updates, self.batch_size) < 1 or self.eval_samples < 2:
            raise ValueError(f"expected num_updates >= 1, batch_size >= 1 and eval_samples >= 2, got {self}")


@dataclass(frozen=True)
class Study:
    """How the errors of estimators are measured.

    Args:
        times: Flow times, in (0, 1).
        num_points: Points per flow time, at least 1.
        num_repeats: Estimates per point, at least 2.
    """

    times: tuple[float, ...] = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
    num_points: int = 32
    num_repeats: int = 64

    def __post_init__(self) -> None:
        if not self.times or not all(0.0 < t < 1.0 for t in self.times):
            raise ValueError(f"times must lie in (0, 1), at least one, got {list(self.times)}")
        if self.num_points < 1 or self.num_repeats < 2:
            raise ValueError(f"expected num_points >= 1 and num_repeats >= 2, got {self}")


@dataclass(frozen=True)
class PolicyCell:
    """One policy: a method trained on a bandit with a seed.

    Attributes:
        file: Where its result is kept.
        method: Name of the method.
        layers: Arguments of ``BanditFlow``, layers in the order in which they are laid over each other.
        bandit_name: Name of the bandit.
        bandit: The bandit.
        seed: Seed.
        training: How it is trained.
    """

    file: Path
    method: str
    layers: tuple[dict[str, Any], ...]
    bandit_name: str
    bandit: Bandit
    seed: int
    training: Training

    @property
    def definition(self) -> dict[str, Any]:
        """All that the result depends on."""
        numbers = dataclasses.asdict(self.training)
        return {"layers": list(self.layers), "bandit": repr(self.bandit), "seed": self.seed} | numbers

    def build(self) -> BanditFlow:
        """The policy before training.

        Raises:
            ValueError: If an argument does not fit.
        """
        return BanditFlow(bandit=self.bandit, **parse_layers(self.layers))

    def work(self) -> dict[str, Any]:
        """Train and compare: metrics by name, samples of the first two actions, and why it broke off if it did."""
        _settle()
        seed_everything(self.seed, verbose=False)
        training, begin = self.training, time.monotonic()
        model = self.build()
        data = _data_of(self.bandit, training)
        trainer = make_trainer(training, self.file.parent)
        try:
            trainer.fit(model, datamodule=data)
            seconds = time.monotonic() - begin
            (metrics,) = trainer.test(model, datamodule=data, verbose=False)
        except RunError as error:
            return {"error": str(error)}
        actions = model.sample_actions(SHOWN_SAMPLES, torch.Generator().manual_seed(0))[:, :2]
        named = {name.removeprefix("test/"): value for name, value in metrics.items()}
        return {"metrics": named | {"seconds": seconds}, "samples": _rounded(actions)}


@dataclass(frozen=True)
class StudyCell:
    """Errors of estimators on one bandit.

    Attributes:
        file: Where the result is kept.
        bandit_name: Name of the bandit.
        bandit: The bandit.
        estimators: Estimators by name.
        temperature: Temperature of the law.
        study: How they are measured.
    """

    file: Path
    bandit_name: str
    bandit: Bandit
    estimators: dict[str, EndpointEstimator]
    temperature: float
    study: Study

    @property
    def definition(self) -> dict[str, Any]:
        """All that the result depends on."""
        estimators = {name: repr(estimator) for name, estimator in self.estimators.items()}
        study = json.loads(json.dumps(dataclasses.asdict(self.study)))
        return {"bandit": repr(self.bandit), "estimators": estimators, "temperature": self.temperature} | study

    def work(self) -> dict[str, Any]:
        """Measure: lists of numbers by quantity by estimator."""
        _settle()
        study = self.study
        errors = estimator_errors(
            self.bandit,
            self.estimators,
            torch.tensor(study.times, dtype=torch.float64),
            temperature=self.temperature,
            num_points=study.num_points,
            num_repeats=study.num_repeats,
        )
        return {"errors": {name: {k: v.tolist() for k, v in vars(error).items()} for name, error in errors.items()}}


Cell = PolicyCell | StudyCell


def make_trainer(training: Training, folder: Path) -> Trainer:
    """A Trainer of one policy, which keeps nothing.

    Args:
        training: How the policy is trained.
        folder: Folder that it may write to.

    Raises:
        ValueError: If there is no such accelerator here.
    """
    try:
        return Trainer(
            accelerator=training.accelerator,
            devices=1,
            max_steps=training.num_updates,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            log_every_n_steps=50,
            default_root_dir=str(folder),
        )
    except (MisconfigurationException, ValueError) as error:
        raise ValueError(f"training.accelerator: {error}") from error


def finish(cell: Cell) -> None:
    """Do the work of a cell and write its file, whole or not at all.

    Args:
        cell: The cell.
    """
    result = {"definition": cell.definition} | cell.work()
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    partial = cell.file.with_name(f"{cell.file.name}.tmp{os.getpid()}")
    try:
        partial.write_text(json.dumps(result), encoding="utf-8")
        partial.replace(cell.file)
    finally:
        partial.unlink(missing_ok=True)


def read(cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, or None if it is not finished.

    Args:
        cell: The cell.

    Raises:
        ValueError: If the file is not the result of this cell.
    """
    if not cell.file.is_file():
        return None
    try:
        result = json.loads(cell.file.read_text(encoding="utf-8"))
        definition = dict(result["definition"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{cell.file} is not a result of the laboratory; remove it") from error
    wanted = json.loads(json.dumps(cell.definition))
    if changed := [name for name in wanted if definition.get(name) != wanted[name]]:
        raise ValueError(f"{cell.file} was made with another {changed[0]}; choose another folder or remove the file")
    return result


def parse_layers(layers: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Arguments of ``BanditFlow`` but the bandit, instantiated.

    Args:
        layers: Arguments as configuration files state them, in the order in which they are laid over each other.

    Raises:
        ValueError: If a class or a value does not fit.
    """
    parser = _model_parser()
    try:
        config: Any = parser.get_defaults()
        for layer in layers:
            config = parser.parse_object({"model": layer}, config)
        made: Any = parser.instantiate_classes(config)
        return dict(vars(made.model))
    except (ArgumentError, ValueError) as error:
        raise UserError(shorten(str(error))) from error


@functools.cache
def _data_of(bandit: Bandit, training: Training) -> BanditData:
    """Data that all policies of a process share: exact samples take a few seconds."""
    return BanditData(bandit, training.batch_size, training.num_updates, training.num_updates, training.eval_samples)


@functools.cache
def known_arguments() -> frozenset[str]:
    """Arguments of ``BanditFlow`` that a method may set."""
    return frozenset(inspect.signature(BanditFlow).parameters) - {"bandit"}


@functools.cache
def _model_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(BanditFlow, "model", skip={"bandit"}, instantiate=False)
    return parser


def _settle() -> None:
    """One thread per process, and nothing of what libraries say about themselves."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|lightning)")


def _rounded(actions: torch.Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in actions.cpu().double().tolist()]
