"""Where MLflow keeps runs: a local file, made whole by whichever run comes first, or a server."""

import contextlib
import os
import sqlite3
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from flowmatch_rl.callbacks.addresses import (
    SQLITE,
    UI_ADDRESS,
    database_file,
    is_server,
    place_of,
    run_page,
    without_password,
)
from flowmatch_rl.checks import UserError
from flowmatch_rl.files import atomic_path, exclusive

REQUEST_S = 10
"""Seconds that a request may take."""

# Without it, MLflow's pages show what is there of language models, not of training.
_KIND = {"mlflow.experimentKind": "custom_model_development"}

_TIMEOUT, _RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


class NoAnswerError(UserError):
    """A tracking that does not answer now and may do so later."""


@contextlib.contextmanager
def bounded_requests(seconds: int = REQUEST_S) -> Iterator[None]:
    """Let MLflow give a request up soon, in a ``with`` block: by itself it tries for minutes.

    What the user sets by MLflow's environment variables stays.

    Args:
        seconds: Seconds after which a request without an answer is given up.
    """
    own = {name: value for name, value in {_TIMEOUT: str(seconds), _RETRIES: "1"}.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def open_database(address: str) -> None:
    """Make sure that MLflow can use a database, and make it if it is a local file that is not there.

    MLflow makes the tables of a new file in dozens of steps. Two processes that do so at once break the file for good,
    as does one that is killed meanwhile; here a new file is made by one process, beside its place, and renamed when it
    is finished.

    Args:
        address: Address of MLflow's tracking, such as ``sqlite:///runs/mlflow.db``; of a server nothing is checked.

    Raises:
        UserError: If it is a local file that MLflow cannot use.
        NoAnswerError: If another process keeps it locked.
    """
    path = database_file(address)
    if path is None:
        return
    if not _is_there(path):
        lock = path.with_name(f"{path.name}.lock")
        with exclusive(lock, str(path), wait=True):
            if not _is_there(path):
                with atomic_path(path) as partial:
                    MlflowClient(f"{SQLITE}{partial.absolute()}")
    _check_lock(path)
    try:
        MlflowClient(address)
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0].partition(" Take a backup")[0]
        raise UserError(
            f"MLflow cannot use {path}: {reason.rstrip('.')}; move the file away, or run: mlflow db upgrade {address}"
        ) from error


def _check_lock(path: Path) -> None:
    """Raise if another process keeps a database locked: MLflow would try for minutes to open it."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_patience())
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise NoAnswerError(f"another process keeps {path} locked") from error
        # Anything else is for MLflow to say.
    finally:
        connection.close()


def check_server(address: str) -> None:
    """Raise unless a server answers, whatever it says: MLflow itself tries for minutes.

    Args:
        address: Address of MLflow's tracking; anything but a server passes.

    Raises:
        NoAnswerError: If it does not answer.
        UserError: If it is no address of a server.
    """
    if not is_server(address):
        return
    place = without_password(address).rstrip("/")
    try:
        urlopen(f"{place}/health", timeout=_patience()).close()
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(error, ValueError) or "no host given" in str(reason):
            raise UserError(f"tracking_uri {place} is not the address of a server ({reason})") from error
        if not isinstance(reason, ssl.SSLError):  # which MLflow may be told to overlook
            raise NoAnswerError(f"no tracking server answers at {place} ({reason})") from error


def _patience() -> float:
    return float(os.environ.get(_TIMEOUT, REQUEST_S))


def connect(address: str) -> MlflowClient:
    """A client of a tracking that can be used.

    Args:
        address: Address of the tracking.

    Raises:
        UserError: If MLflow cannot use it.
        NoAnswerError: If it does not answer.
    """
    open_database(address)
    check_server(address)
    try:
        return MlflowClient(address)
    except MlflowException as error:
        if is_server(address) or database_file(address) is not None:
            raise
        # A word that is no address, or a kind of address that MLflow does not know.
        raise UserError(f"MLflow cannot use {place_of(address)}: {str(error).strip().splitlines()[0]}") from error


def open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    """Make an experiment if there is none; another process may do so in the same moment.

    Args:
        client: Client of the tracking.
        name: Name of the experiment.
        artifacts: Address of the files of its runs; the server's own if None.

    Returns:
        Its identifier.

    Raises:
        UserError: If it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifacts, tags=_KIND)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None, "another process has made it"
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(
            f"the experiment {name!r} was deleted; bring it back with: mlflow experiments restore -x "
            f"{found.experiment_id}, or name another with --trainer.logger.init_args.experiment_name"
        )
    return found.experiment_id


def check_run(client: MlflowClient, run_id: str) -> str:
    """Raise unless a run can be resumed.

    Args:
        client: Client of the tracking.
        run_id: Its identifier.

    Returns:
        Identifier of its experiment.

    Raises:
        UserError: If MLflow does not know it, or it was deleted.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"MLflow knows no run {run_id!r} to resume") from error
    if run.info.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(f"the run {run_id!r} was deleted; bring it back with: mlflow runs restore --run-id {run_id}")
    return run.info.experiment_id


def latest_runs(address: str, ui: str = UI_ADDRESS) -> str:
    """Address of the page of the experiment with the latest run.

    Args:
        address: Address of the tracking, of a server or of a local file.
        ui: Address where a local file is shown.

    Raises:
        UserError: If there is no run, or no such file or server.
    """
    file, place = database_file(address), place_of(address)
    advice = "make some with flowmatch-rl fit, or name another place with --tracking_uri"
    if file is not None and not _is_there(file):
        raise UserError(f"there are no tracked runs: there is no file {place}; {advice}")
    with bounded_requests():
        client = connect(address)
        known = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(known, max_results=1, order_by=["start_time DESC"])
    if not runs:
        raise UserError(f"there are no tracked runs in {place}; {advice}")
    return run_page(address, runs[0].info.experiment_id, ui=ui)


def _is_there(path: Path) -> bool:
    """Whether there is a file with something in it: whoever opens a new one makes it empty at first."""
    return path.exists() and path.stat().st_size > 0
