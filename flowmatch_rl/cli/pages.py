"""The command ``ui``: MLflow's pages, opened where the runs are."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence

from flowmatch_rl.callbacks.addresses import is_server, tracking_address
from flowmatch_rl.callbacks.database import latest_runs
from flowmatch_rl.checks import RunError, UserError, check_range
from flowmatch_rl.cli.parser import make_parser, read_options

_POLL_S = 0.2


def ui(args: Sequence[str]) -> int:
    """Show tracked runs in a browser, until it is interrupted.

    Args:
        args: Arguments after the command.

    Returns:
        Exit status.

    Raises:
        UserError: If there are no runs, or the port is in use.
        RunError: If MLflow's server ends.
    """
    parser = make_parser("ui", "Show the tracked runs on MLflow's pages, until it is interrupted.", with_files=False)
    parser.add_argument(
        "--tracking_uri",
        type=str | None,
        default=None,
        help="Where runs are tracked; the environment variable MLFLOW_TRACKING_URI, or runs/mlflow.db, if null.",
    )
    parser.add_argument("--port", type=int, default=5000, help="Port of the pages, which only this machine can open.")
    parser.add_argument(
        "--browser", type=bool, default=True, help="Whether to open a browser, where there is a screen."
    )
    options = read_options(parser, args)
    address = tracking_address(options["tracking_uri"])
    port = options["port"]
    check_range("[1, 65535]", port=port)
    page = latest_runs(address, f"http://localhost:{port}")
    if is_server(address):
        _open(page, options["browser"])
        return 0
    if _answers(port):
        raise UserError(f"port {port} is in use, perhaps by another flowmatch-rl ui; choose one with --port")
    with _server(address, port) as server, contextlib.suppress(KeyboardInterrupt):
        while not (answered := _answers(port)) and server.poll() is None:
            time.sleep(_POLL_S)
        if answered:
            _open(page, options["browser"])
        if server.wait():
            raise RunError(f"MLflow's server ended with status {server.returncode}")
    return 0


def _open(page: str, browser: bool) -> None:
    """Print an address, and open it where there is a screen: a browser in the terminal would take it over."""
    print(f"runs         {page}", flush=True)
    if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(page)


def _answers(port: int) -> bool:
    """Whether a server listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _server(address: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server, which ends with this process."""
    # One of its processes serves one user, and says nothing unless something is wrong.
    quietly = ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", address, *quietly]
    # Without the setting it starts seven processes more, of 240 MB each, which nothing here uses.
    settings = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
    }
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=settings | os.environ)
    handler = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield server
    finally:
        signal.signal(signal.SIGTERM, handler)
        server.terminate()
        server.wait()
