"""The run that holds those of a comparison, where the server does not answer."""

import time
from pathlib import Path

import pytest

from flowmatch_rl.callbacks.nesting import ParentRun
from flowmatch_rl.checks import UserError
from tests.callbacks.fake_server import FakeServer


@pytest.mark.parametrize("is_down", [True, False], ids=["down", "hangs"])
def test_a_comparison_does_not_begin_without_its_server_and_says_so_within_seconds(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    server.mode = "hangs"
    if is_down:
        server.stop()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^[^\n]*; start it, or work without it: --tracking false$"):
        ParentRun("out")
    assert time.monotonic() - began < 30.0


def test_a_server_that_fails_during_a_comparison_is_a_warning(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    parent = ParentRun("out")
    assert server.run["tags"]["mlflow.runName"] == "out"
    server.mode = "fails"
    with pytest.warns(UserWarning, match="the earlier run in .* is not looked up"):
        assert parent.child_of(tmp_path) is None
    with pytest.warns(UserWarning, match="is not marked as FINISHED"):
        parent.close("FINISHED")
    server.mode = "answers"
    assert ParentRun("out", parent.run_id).run_id == parent.run_id
    parent.close("FINISHED")
    assert server.run["info"]["status"] == "FINISHED"
