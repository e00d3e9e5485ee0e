"""The command ``laboratory``: methods on bandits with a known value, and the errors of estimators on them."""

import contextlib
import csv
import inspect
import math
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm import tqdm

import flowmatch_rl.modules
from flowmatch_rl.checks import RunError
from flowmatch_rl.estimators import EndpointEstimator
from flowmatch_rl.evaluation.estimators import check_estimator
from flowmatch_rl.experiments.definitions import Options, check_names, check_seeds, only_one, read_layer
from flowmatch_rl.experiments.laboratory_cells import (
    SHOWN_SAMPLES,
    Cell,
    PolicyCell,
    Study,
    StudyCell,
    Training,
    finish,
    known_arguments,
    make_trainer,
    read,
)
from flowmatch_rl.figures import ErrorCurve, LawPanels, draw_estimator_errors, draw_law_samples, save_figure
from flowmatch_rl.testbeds import Bandit

COLUMNS = {
    "energy_distance": "energy distance",
    "energy_distance/50_steps": "with 50 steps",
    "sliced_wasserstein": "sliced Wasserstein",
    "mmd": "MMD",
    "smallest_mode_share": "smallest mode",
    "largest_mode_share": "largest mode",
    "saturated": "saturated",
}
"""Metrics of the table, and what they are called there."""

_GRID = 121
"""Points per side of the densities in the figure."""


def run_laboratory(
    output: str,
    methods: dict[str, list[str]],
    bandits: dict[str, Bandit],
    seeds: list[int],
    estimators: dict[str, EndpointEstimator] | None = None,
    temperature: float = 1.0,
    model: Options | None = None,
    training: Training = Training(),
    study: Study = Study(),
    workers: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Train flow policies by several methods on bandits, compare them with exact samples, and study estimators.

    Every policy, and the study of every bandit, is a file in ``output``; what is there already is not done again.

    Args:
        output: Folder of the results; one that exists goes on.
        methods: Methods by name: configuration files in the order in which they are laid over each other. Of their
            model section the arguments count that ``BanditFlow`` has too.
        bandits: Bandits by name.
        seeds: Seeds of each method on each bandit.
        estimators: Estimators by name whose errors along the linear path are measured; none if None.
        temperature: Temperature of the laws, in units of the return, positive; that of the methods does not count.
        model: Arguments of ``BanditFlow``, laid over those of every method.
        training: How each policy is trained and compared.
        study: How the errors of estimators are measured.
        workers: Processes at a time, at least 1; one per core if None.
        progress: Whether to show a bar.

    Returns:
        Files with results: ``results.csv``, ``table.md``, ``samples.png``, and ``estimators.png`` if there are any.

    Raises:
        ValueError: If an argument or a file does not fit.
        RunError: If another command works in the folder, or a process is ended from outside.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cores if workers is None else workers
    _check(methods, bandits, seeds, temperature, workers)
    folder = Path(output)
    make_trainer(training, folder)  # refuses an accelerator that is not there, before the work begins
    last = {**(model or {}), "temperature": temperature}
    _check_known("model", last)
    policies = [
        PolicyCell(
            folder / "policies" / bandit_name / name / f"{seed}.json",
            name,
            (*(_arguments_of(name, path) for path in paths), last),
            bandit_name,
            bandit,
            seed,
            training,
        )
        for seed in seeds
        for bandit_name, bandit in bandits.items()
        for name, paths in methods.items()
    ]
    for name, estimator in (estimators or {}).items():
        check_estimator(f"estimators.{name}", estimator)
    for cell in policies[: len(bandits) * len(methods)]:
        _check_cell(cell)
    studies = [
        StudyCell(folder / "estimators" / f"{name}.json", name, bandit, estimators, temperature, study)
        for name, bandit in bandits.items()
        if estimators
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder), _raising_when_terminated():
        _work([*studies, *policies], workers, progress)
        files = [*_write_tables(folder, policies), _draw_samples(folder, policies, temperature)]
        return files + ([_draw_errors(folder, studies)] if studies else [])


def _work(cells: Sequence[Cell], workers: int, progress: bool) -> None:
    """Finish all cells that are not; what is done when one fails or the user interrupts stays."""
    todo = [cell for cell in cells if read(cell) is None]
    with (
        tqdm(total=len(cells), initial=len(cells) - len(todo), disable=not progress, unit="cell") as bar,
        contextlib.closing(_finished(todo, workers)) as finished,
    ):
        for _ in finished:
            bar.update()


def _finished(todo: Sequence[Cell], workers: int) -> Generator[None]:
    """Finish cells, here if there is one worker; yields after each."""
    if workers == 1:
        for cell in todo:
            yield finish(cell)
        return
    try:
        with _processes(workers) as pool:
            for future in as_completed([pool.submit(finish, cell) for cell in todo]):
                yield future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a process of the laboratory was ended, perhaps for want of memory; the same command goes on from here"
        ) from error


@contextlib.contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are ended at once where the block is left by an error: results are written whole or not at all."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches them as well. It is for this process, which ends them; they would go on with the next cell.
    with (
        ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool,
        contextlib.ExitStack() as on_error,
    ):
        on_error.callback(_end_all_but, others)
        yield pool
        on_error.pop_all()


def _end_all_but(others: Set[BaseProcess]) -> None:
    for process in set(multiprocessing.active_children()) - others:
        process.kill()


@contextlib.contextmanager
def _raising_when_terminated() -> Iterator[None]:
    """Let a signal to terminate raise, as Ctrl-C does, so that no process is left behind."""

    def end(*_: Any) -> NoReturn:
        raise SIGTERMException

    kept = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)


def _results(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """Results of finished cells."""
    found = [(cell, read(cell)) for cell in cells]
    return [result for _, result in found if result is not None]


def _write_tables(folder: Path, cells: Sequence[PolicyCell]) -> list[Path]:
    """Write all numbers to ``results.csv``, and means over seeds to ``table.md``."""
    results = _results(cells)
    names = sorted({name for result in results for name in result.get("metrics", {})})
    table, summary = folder / "results.csv", folder / "table.md"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["bandit", "method", "seed", *names, "error"])
        for cell, result in zip(cells, results, strict=True):
            numbers = [result.get("metrics", {}).get(name, "") for name in names]
            writer.writerow([cell.bandit_name, cell.method, cell.seed, *numbers, result.get("error", "")])
    blocks = [_table(name, cells, results) for name in dict.fromkeys(cell.bandit_name for cell in cells)]
    summary.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return [table, summary]


def _table(bandit: str, cells: Sequence[PolicyCell], results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of one bandit: methods by metrics, the mean and the standard deviation over seeds."""
    mine = [(cell, result) for cell, result in zip(cells, results, strict=True) if cell.bandit_name == bandit]
    lines = [f"## {bandit}", "", f"| method | {' | '.join(COLUMNS.values())} |", "|---" * (1 + len(COLUMNS)) + "|"]
    known = [result["metrics"] for _, result in mine if "metrics" in result]
    if known:  # the exact samples are the same for all
        floor = [f"{known[0][name]:.4f}" if (name := f"exact/{column}") in known[0] else "" for column in COLUMNS]
        lines.append(f"| two exact samples | {' | '.join(floor)} |")
    for method in dict.fromkeys(cell.method for cell, _ in mine):
        rows = [result.get("metrics") for cell, result in mine if cell.method == method]
        done = [row for row in rows if row is not None]
        numbers = [_mean_and_deviation([row[name] for row in done if name in row]) for name in COLUMNS]
        failed = len(rows) - len(done)
        note = f" ({failed} of {len(rows)} broke off)" if failed else ""
        lines.append(f"| {method}{note} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.4f}" + (f" +- {stdev(values):.4f}" if len(values) > 1 else "")


def _draw_samples(folder: Path, cells: Sequence[PolicyCell], temperature: float) -> Path:
    """Draw the policies of the first seed."""
    laws = {}
    first = [cell for cell in cells if cell.seed == cells[0].seed]
    for name, bandit in {cell.bandit_name: cell.bandit for cell in first}.items():
        results = {
            cell.method: result for cell, result in zip(first, _results(first), strict=True) if cell.bandit_name == name
        }
        line = torch.linspace(-1.0, 1.0, _GRID, dtype=torch.float64)
        points = torch.cartesian_prod(line, line).flip(-1)  # rows by the second action
        density = bandit.plane_log_prob(points, temperature).exp().reshape(_GRID, _GRID)
        uniform = torch.rand(
            SHOWN_SAMPLES, bandit.action_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        samples = {
            method: torch.tensor(result["samples"]).numpy() if "samples" in result else None
            for method, result in results.items()
        }
        distance = {
            method: result["metrics"]["energy_distance"] for method, result in results.items() if "metrics" in result
        }
        exact = bandit.sample(uniform, temperature)[:, :2].numpy()
        laws[name] = LawPanels(density.numpy(), exact, samples, distance, bandit.action_dim)
    path = folder / "samples.png"
    save_figure(draw_law_samples(laws), path)
    return path


def _draw_errors(folder: Path, cells: Sequence[StudyCell]) -> Path:
    curves = {}
    for cell, result in zip(cells, _results(cells), strict=True):
        arrays = {
            name: {key: torch.tensor(values).numpy() for key, values in error.items()}
            for name, error in result["errors"].items()
        }
        curves[cell.bandit_name] = {
            name: ErrorCurve(a["t"], a["bias"], a["resolution"], a["deviation"]) for name, a in arrays.items()
        }
    path = folder / "estimators.png"
    save_figure(draw_estimator_errors(curves), path)
    return path


def _arguments_of(method: str, path: str) -> dict[str, Any]:
    """What a configuration file says about the arguments that ``BanditFlow`` has."""
    where = f"methods.{method}"
    section = read_layer(where, path).get("model")
    if not isinstance(section, dict):
        raise ValueError(f"{where}: {path} has no section model with arguments")
    module = str(section.get("class_path", "")).rpartition(".")[2]
    accepted = inspect.signature(getattr(flowmatch_rl.modules, module, object)).parameters
    if "estimator" not in accepted:
        raise ValueError(f"{where}: {path} configures {module or 'no class'}, which has no estimator of end points")
    arguments = section.get("init_args") or {}
    if unknown := [name for name in arguments if name not in accepted]:
        raise ValueError(f"{where}: {path} has the unknown key '{unknown[0]}'; it is none of {module}")
    # The laboratory sets the temperature; actor-critics may have a rule for it instead of a number.
    names = known_arguments() - {"temperature"}
    return {name: value for name, value in arguments.items() if name in names}


def _check(
    methods: Mapping[str, list[str]],
    bandits: Mapping[str, Bandit],
    seeds: Sequence[int],
    temperature: float,
    workers: int,
) -> None:
    for kind, entries in {"methods": methods, "bandits": bandits}.items():
        check_names(kind, entries)
    if small := [name for name, bandit in bandits.items() if bandit.action_dim < 2]:
        raise ValueError(f"bandits.{small[0]}: the figure needs at least two actions, got one")
    check_seeds(seeds)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def _check_known(where: str, arguments: Mapping[str, Any]) -> None:
    if unknown := [name for name in arguments if name not in known_arguments()]:
        raise ValueError(f"{where}: unknown key '{unknown[0]}'; BanditFlow has {', '.join(sorted(known_arguments()))}")


def _check_cell(cell: PolicyCell) -> None:
    """Raise, before the work begins, where a method does not fit a bandit or the law can't be sampled."""
    try:
        cell.build()
    except ValueError as error:
        raise ValueError(f"methods.{cell.method}: {error}") from error
    try:
        cell.bandit.log_normaliser(cell.layers[-1]["temperature"])
    except ValueError as error:
        raise ValueError(f"bandits.{cell.bandit_name}: {error}") from error
