"""Where MLflow keeps runs: a local file, made whole by whichever run comes first, or a server; and pages of runs."""

import ssl
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from flowmatch_rl.checks import UserError
from flowmatch_rl.files import atomic_path, exclusive

LOCAL_FOLDER = "runs"
"""Folder of runs, of the local file and of MLflow's copies of their files, under the working folder."""

UI_ADDRESS = "http://localhost:5000"
"""Where ``flowmatch-rl ui`` shows runs, unless another port is chosen."""

_SQLITE = "sqlite:///"

# Without it, MLflow's pages show what is there of language models, not of training.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_KIND_OF_PAGE = "workflowType=machine_learning"

_WAIT_S = 10.0


def local_address() -> str:
    """Address of the file that runs are tracked in where no other is named."""
    return f"{_SQLITE}{Path(LOCAL_FOLDER).absolute() / 'mlflow.db'}"


def open_database(address: str) -> None:
    """Make sure that MLflow can use a database, and make it if it is a local file that is not there.

    MLflow makes the tables of a new file in dozens of steps. Two processes that do so at once break the file for good,
    as does one that is killed meanwhile; here a new file is made by one process, beside its place, and renamed when it
    is finished.

    Args:
        address: Address of MLflow's tracking, such as ``sqlite:///runs/mlflow.db``; of a server nothing is checked.

    Raises:
        UserError: If it is a local file that MLflow cannot use.
    """
    path = database_file(address)
    if path is None:
        return
    if not _is_there(path):
        lock = path.with_name(f"{path.name}.lock")
        with exclusive(lock, str(path), wait=True):
            if not _is_there(path):
                with atomic_path(path) as partial:
                    MlflowClient(f"{_SQLITE}{partial.absolute()}")
    try:
        MlflowClient(address)
    except (MlflowException, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0].partition(" Take a backup")[0]
        raise UserError(
            f"MLflow cannot use {path}: {reason.rstrip('.')}; move the file away, or run: mlflow db upgrade {address}"
        ) from error


def database_file(address: str) -> Path | None:
    """The file of a SQLite address; None for any other address.

    Args:
        address: Address of MLflow's tracking.
    """
    if not address.startswith(_SQLITE):
        return None
    name = address.removeprefix(_SQLITE).partition("?")[0]
    return None if name in ("", ":memory:") else Path(name)


def is_server(address: str) -> bool:
    """Whether an address is that of a server that shows pages itself.

    Args:
        address: Address of MLflow's tracking.
    """
    return address.startswith(("http://", "https://"))


def without_password(address: str) -> str:
    """An address without the name and the password that may stand before its host.

    Args:
        address: The address.
    """
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check_server(address: str) -> None:
    """Raise unless a server answers, whatever it says: MLflow itself tries for minutes.

    Args:
        address: Address of MLflow's tracking; anything but a server passes.

    Raises:
        UserError: If it does not answer.
    """
    if not is_server(address):
        return
    place = without_password(address).rstrip("/")
    try:
        urlopen(f"{place}/health", timeout=_WAIT_S).close()
    except HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if not isinstance(reason, ssl.SSLError):  # which MLflow may be told to overlook
            raise UserError(
                f"no tracking server answers at {place} ({reason}); start it, or train without: --trainer.logger false"
            ) from error


def open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> None:
    """Make an experiment if there is none; another process may do so in the same moment.

    Args:
        client: Client of the tracking.
        name: Name of the experiment.
        artifacts: Address of the files of its runs; the server's own if None.

    Raises:
        UserError: If it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifacts, tags=_KIND)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    elif found.lifecycle_stage == LifecycleStage.DELETED:
        raise UserError(
            f"the experiment {name!r} was deleted; bring it back with: mlflow experiments restore -x "
            f"{found.experiment_id}, or name another with --trainer.logger.init_args.experiment_name"
        )


def check_run(client: MlflowClient, run_id: str) -> None:
    """Raise unless a run can be resumed.

    Args:
        client: Client of the tracking.
        run_id: Its identifier.

    Raises:
        UserError: If MLflow does not know it.
    """
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"MLflow knows no run {run_id!r} to resume") from error


def run_page(address: str, experiment_id: str, run_id: str | None = None, ui: str = UI_ADDRESS) -> str:
    """Address of the page of a run, or of all runs of an experiment.

    Args:
        address: Address of the tracking, of a server or of a local file.
        experiment_id: Identifier of the experiment.
        run_id: Identifier of the run; None for all.
        ui: Address where a local file is shown.
    """
    server = without_password(address).rstrip("/") if is_server(address) else ui
    place = f"experiments/{experiment_id}/runs" + ("" if run_id is None else f"/{run_id}")
    return f"{server}/#/{place}?{_KIND_OF_PAGE}"


def latest_runs(address: str, ui: str = UI_ADDRESS) -> str:
    """Address of the page of the experiment with the latest run.

    Args:
        address: Address of the tracking, of a server or of a local file.
        ui: Address where a local file is shown.

    Raises:
        UserError: If there is no run, or no such file or server.
    """
    file = database_file(address)
    place = without_password(address) if file is None else str(file)
    advice = "make some with flowmatch-rl fit, or name another place with --tracking_uri"
    if file is not None and not _is_there(file):
        raise UserError(f"there are no tracked runs: there is no file {place}; {advice}")
    check_server(address)
    open_database(address)
    client = MlflowClient(address)
    known = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(known, max_results=1, order_by=["start_time DESC"])
    if not runs:
        raise UserError(f"there are no tracked runs in {place}; {advice}")
    return run_page(address, runs[0].info.experiment_id, ui=ui)


def _is_there(path: Path) -> bool:
    """Whether there is a file with something in it: whoever opens a new one makes it empty at first."""
    return path.exists() and path.stat().st_size > 0
