"""The trials of a sweep, in a database of Optuna that outlives the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from flowmatch_rl.checks import UserError
from flowmatch_rl.experiments.sweeps.plan import Sweep
from flowmatch_rl.experiments.sweeps.search import NAME

STUDY = "study.db"
"""Database of the trials, in the folder of a sweep."""

Direction = Literal["max", "min"]

COMPLETE, PRUNED, FAILED, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING

LEAST_FOR_IMPORTANCES = 4
"""Complete trials without which nothing is said of importances."""

_DIRECTIONS = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
_REASON = "reason"


class Trials:
    """The trials of a sweep.

    A trial is written in one step, with its point, so that a killed command leaves whole trials only. The trials of one
    that was killed or interrupted are still running here.

    Args:
        output: Folder of the sweep.
        direction: Whether the highest or the lowest value is the best.
        sweep: The sweep.

    Raises:
        UserError: If the database is damaged.
    """

    def __init__(self, output: Path, direction: Direction, sweep: Sweep) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path = output / STUDY
        try:
            self._storage = RDBStorage(f"sqlite:///{path.absolute()}")
            self._study = optuna.create_study(
                storage=self._storage, study_name=NAME, direction=_DIRECTIONS[direction], load_if_exists=True
            )
        except (StorageInternalError, RuntimeError) as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise UserError(f"{path} is not the database of a sweep: {reason}") from error
        self._sweep, self._pruner = sweep, sweep.pruner.make()

    @property
    def direction(self) -> Direction:
        """Whether the highest or the lowest value is the best."""
        return "max" if self._study.direction == StudyDirection.MAXIMIZE else "min"

    def __len__(self) -> int:
        return len(self.all())

    def __getitem__(self, number: int) -> FrozenTrial:
        return self.all()[number]

    def all(self) -> list[FrozenTrial]:
        """All trials in their order."""
        return self._study.get_trials(deepcopy=False)

    def in_state(self, state: TrialState) -> list[FrozenTrial]:
        """The trials that are complete, pruned, failed or running.

        Args:
            state: Which of these.
        """
        return [trial for trial in self.all() if trial.state == state]

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best value, the first of equals; None if none is complete."""
        values = {trial.number: trial.value for trial in self.in_state(COMPLETE) if trial.value is not None}
        if not values:
            return None
        return self[(max if self.direction == "max" else min)(values, key=lambda number: values[number])]

    def add(self) -> FrozenTrial:
        """Choose the point of the next trial, and begin it."""
        point = self._sweep.sampler.point(self._sweep.dimensions, self._study, self._pruner)
        distributions = {key: dimension.distribution for key, dimension in self._sweep.dimensions.items()}
        self._study.add_trial(create_trial(state=RUNNING, params=dict(point), distributions=distributions))
        return self.all()[-1]

    def report(self, number: int, evaluations: Mapping[int, float]) -> int | None:
        """Note evaluations of a trial, in their order, up to the first at which it is to be given up.

        Args:
            number: Number of the trial.
            evaluations: Values by step, ascending.

        Returns:
            The step at which it is to be given up; None if it may continue.
        """
        known = self[number].intermediate_values
        last = max(known, default=-1)
        for step, value in evaluations.items():
            if step > last:
                self._storage.set_trial_intermediate_value(self._id(number), step, value)
            # The decision about the last one may not have been carried out before a command was killed.
            if step >= last and self._pruner.prune(self._study, self[number]):
                return step
        return None

    def complete(self, number: int, value: float) -> None:
        """End a trial with a value.

        Args:
            number: Number of the trial.
            value: The value, finite.
        """
        self._study.tell(number, value)

    def prune(self, number: int) -> None:
        """End a trial that is given up.

        Args:
            number: Number of the trial.
        """
        self._study.tell(number, state=PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """End a trial without a value.

        Args:
            number: Number of the trial.
            reason: Why it has none, one line.
        """
        self._storage.set_trial_user_attr(self._id(number), _REASON, reason)
        self._study.tell(number, state=FAILED)

    def importances(self) -> dict[str, float]:
        """The fraction of the variance of the values that each key explains, by fANOVA; of at least four trials.

        Reference:
            Hutter et al., An Efficient Approach for Assessing Hyperparameter Importance, 2014.
        """
        complete = self.in_state(COMPLETE)
        if len(complete) < LEAST_FOR_IMPORTANCES or len({trial.value for trial in complete}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {key: float(value) for key, value in found.items()}

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(NAME)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial failed; empty if it did not.

    Args:
        trial: The trial.
    """
    return str(trial.user_attrs.get(_REASON, ""))


def seconds_of(trial: FrozenTrial) -> float | None:
    """Wall time from the beginning of a trial to its end, interruptions included; None before its end."""
    return None if trial.duration is None else trial.duration.total_seconds()


def words_of(state: Any) -> str:
    """A state in a word."""
    return {COMPLETE: "complete", PRUNED: "pruned", FAILED: "failed"}.get(state, "running")
