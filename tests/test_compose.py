"""The containers of compose.yaml: reached by this machine alone, watched, and without a password in the file."""

from typing import Any

import pytest
import yaml

from tests.cli.support import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
SERVERS = ["postgres", "mlflow"]


def test_ports_are_bound_to_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]
    allowed = next(word for word in SERVICES["mlflow"]["command"] if word.startswith("--allowed-hosts="))
    assert {"mlflow:5000", "localhost:5000"} <= set(allowed.partition("=")[2].split(","))
    assert SERVICES["train"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_the_password_is_a_secret_that_the_environment_gives() -> None:
    assert COMPOSE["secrets"] == {"postgres_password": {"environment": "POSTGRES_PASSWORD"}}
    assert [name for name, service in SERVICES.items() if service.get("secrets")] == SERVERS
    assert not any("PASSWORD" in name for name in SERVICES["mlflow"]["environment"])
    assert ".env" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", SERVERS)
def test_servers_keep_their_data_in_volumes_say_whether_they_are_well_and_start_in_order(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    volumes = [volume.partition(":")[0] for volume in service["volumes"]]
    assert volumes
    assert set(volumes) <= COMPOSE["volumes"].keys()
    needed = {"mlflow": "postgres", "train": "mlflow"}
    assert all(SERVICES[a]["depends_on"] == {b: {"condition": "service_healthy"}} for a, b in needed.items())
