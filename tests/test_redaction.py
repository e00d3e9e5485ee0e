"""Passwords do not reach what is written or printed."""

import re
from pathlib import Path

import pytest

from flowmatch_rl.redaction import redact, redact_all


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pa55@host:5000", "http://me:***@host:5000"),
        ("https://me:p@ss/w:rd@host/path", "https://me:***@host/path"),
        ("postgresql+psycopg2://me:pa55@host:5432/db", "postgresql+psycopg2://me:***@host:5432/db"),
        ("http://me:12345@host", "http://me:***@host"),
        ("https://pa55@host/x", "https://***@host/x"),
        ("http://:pa55@host", "http://:***@host"),
        ("http://host/x?a=1&password=pa55&b=2", "http://host/x?a=1&password=***&b=2"),
        ("https://host?access_token=pa55", "https://host?access_token=***"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/page@2", "http://host:5000/page@2"),
        ("sqlite:////runs/a@b/mlflow.db", "sqlite:////runs/a@b/mlflow.db"),
        ("someone@example.org", "someone@example.org"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert redact(address) == shown
    assert redact(f"at '{address}' (see above)") == f"at '{shown}' (see above)"
    assert redact_all({"a": [{"b": (address, 1, None)}]}) == {"a": [{"b": [shown, 1, None]}]}
    assert redact(shown) == shown


def test_documented_containers_publish_ports_on_this_machine_only() -> None:
    root = Path(__file__).parents[1]
    files = [root / "README.md", root / "Makefile", root / "Dockerfile", *root.glob("docs/*.md")]
    published = [port for path in files for port in re.findall(r"(?:-p|--publish)[ =](\S*\d+:\d+)", path.read_text())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
