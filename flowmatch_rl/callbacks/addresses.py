"""Addresses of MLflow's tracking, and of pages of runs; nothing here imports MLflow."""

import os
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from flowmatch_rl.checks import UserError
from flowmatch_rl.redaction import HIDDEN

LOCAL_FOLDER = "runs"
"""Folder of runs, of the local file and of MLflow's copies of their files, under the working folder."""

UI_ADDRESS = "http://localhost:5000"
"""Where ``flowmatch-rl ui`` shows runs, unless another port is chosen."""

SQLITE = "sqlite:///"
"""Begins the address of a local file."""

# Without it, MLflow's pages show what is there of language models, not of training.
_KIND_OF_PAGE = "workflowType=machine_learning"


def local_address() -> str:
    """Address of the file that runs are tracked in where no other is named."""
    return f"{SQLITE}{Path(LOCAL_FOLDER).absolute() / 'mlflow.db'}"


def tracking_address(given: str | None = None) -> str:
    """Address of the tracking: the given one, that in ``MLFLOW_TRACKING_URI``, or that of the local file.

    Args:
        given: What the user names; None for nothing.

    Raises:
        UserError: If its password was left out.
    """
    chosen = given or os.environ.get("MLFLOW_TRACKING_URI") or local_address()
    check_address(chosen)
    return chosen


def artifact_folder(address: str) -> str | None:
    """Address of the files of new experiments: beside the local file; None for MLflow's own choice.

    Args:
        address: Address of the tracking.
    """
    return (Path(LOCAL_FOLDER).absolute() / "mlflow_artifacts").as_uri() if address == local_address() else None


def check_address(address: str) -> None:
    """Raise if an address comes from a record, which passwords are left out of.

    Args:
        address: Address of the tracking.

    Raises:
        UserError: If its password was left out.
    """
    if HIDDEN in address:
        raise UserError(
            f"tracking_uri {address} lacks its password, which no configuration of a run keeps; give the whole address "
            "in MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD and leave both out"
        )


def database_file(address: str) -> Path | None:
    """The file of a SQLite address; None for any other address.

    Args:
        address: Address of MLflow's tracking.
    """
    if not address.startswith(SQLITE):
        return None
    name = address.removeprefix(SQLITE).partition("?")[0]
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


def place_of(address: str) -> str:
    """Where runs are tracked, in words: a local file by its path, anything else by its address without a password.

    Args:
        address: Address of MLflow's tracking.
    """
    file = database_file(address)
    return without_password(address).rstrip("/") if file is None else str(file)


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


def run_lines(address: str, page: str | None, run_id: str | None) -> list[str]:
    """Where an MLflow run is to be seen, in lines that begin with a label.

    Args:
        address: Address of the tracking.
        page: Address of the run's page; None where MLflow has not been reached.
        run_id: Identifier of the run.
    """
    if page is None:
        return [f"tracking     {place_of(address)}, not reached yet"]
    if is_server(address):
        return [f"tracking     {page}"]
    if database_file(address) is None:
        return [f"tracking     MLflow run {run_id} at {without_password(address)}"]
    option = "" if address == local_address() else f" --tracking_uri {address}"
    return [f"tracking     {page}", f"open it      flowmatch-rl ui{option}"]
