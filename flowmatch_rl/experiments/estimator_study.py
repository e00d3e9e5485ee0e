"""Errors of estimators on bandits, whose posterior mean is known by quadrature: a table and a figure."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from flowmatch_rl.checks import UserError, check_range
from flowmatch_rl.estimators import EndpointEstimator
from flowmatch_rl.evaluation import estimator_errors
from flowmatch_rl.evaluation.estimators import check_estimator
from flowmatch_rl.figures import draw_estimator_errors, save_figure
from flowmatch_rl.files import atomic_path
from flowmatch_rl.testbeds import Bandit

_TIMES = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def study_estimators(
    output: str,
    bandits: dict[str, Bandit],
    estimators: dict[str, EndpointEstimator],
    temperature: float = 1.0,
    times: Sequence[float] = _TIMES,
    num_points: int = 32,
    num_repeats: int = 64,
) -> list[Path]:
    """Measure bias and spread of estimators along the linear path to the Boltzmann distributions of bandits.

    Args:
        output: Folder for ``estimators.csv`` and ``estimators.png``.
        bandits: Bandits by name.
        estimators: Estimators by name.
        temperature: Temperature of the distributions, in units of the return, positive.
        times: Flow times, in (0, 1).
        num_points: Points of the path per flow time, at least 1.
        num_repeats: Estimates per point, at least 2.

    Returns:
        Paths of the two files.

    Raises:
        UserError: If an argument does not fit.
    """
    check_range("(0, inf)", temperature=temperature)
    check_range("[1, inf)", num_points=num_points)
    check_range("[2, inf)", num_repeats=num_repeats)
    for time in times:
        check_range("(0, 1)", times=time)
    for kind, entries in {"bandits": bandits, "estimators": estimators, "times": times}.items():
        if not entries:
            raise UserError(f"{kind} must name at least one, got none")
    for name, estimator in estimators.items():
        check_estimator(f"estimators.{name}", estimator)
    for name, bandit in bandits.items():
        try:
            bandit.log_normaliser(temperature)
        except ValueError as error:
            raise UserError(f"bandits.{name}: {error}") from error
    t = torch.tensor(times, dtype=torch.float64)
    numbers = {"temperature": temperature, "num_points": num_points, "num_repeats": num_repeats}
    errors = {name: estimator_errors(bandit, estimators, t, **numbers) for name, bandit in bandits.items()}
    tables = [
        pd.DataFrame({"bandit": bandit, "estimator": name} | {key: each.numpy() for key, each in vars(error).items()})
        for bandit, found in errors.items()
        for name, error in found.items()
    ]
    table, figure = Path(output) / "estimators.csv", Path(output) / "estimators.png"
    with atomic_path(table) as partial:
        pd.concat(tables).to_csv(partial, index=False)
    save_figure(draw_estimator_errors(errors), figure)
    return [table, figure]
