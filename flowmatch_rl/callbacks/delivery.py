"""Delivers a journal to MLflow, once and in order, whatever fails meanwhile."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from mlflow.entities import DatasetInput, LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from flowmatch_rl.callbacks.addresses import check_address
from flowmatch_rl.callbacks.database import NoAnswerError, bounded_requests, check_run, connect, open_experiment
from flowmatch_rl.callbacks.datasets import as_dataset
from flowmatch_rl.callbacks.delivered import Delivered, remainder
from flowmatch_rl.callbacks.journal import (
    END,
    FILE,
    INPUT,
    METRICS,
    MODEL,
    OPEN,
    PARAMETERS,
    TAGS,
    Entry,
    read_entries,
)
from flowmatch_rl.callbacks.models import log_model
from flowmatch_rl.checks import UserError
from flowmatch_rl.redaction import HIDDEN, redact

KEY = "flowmatch_rl.journal"
"""Tag of a run with the key of its journal, by which one that was made is found again."""

FILE_S = 120
"""Seconds without progress after which the copying of a file is given up."""

_MOST_METRICS, _MOST_OTHERS = 800, 100  # of MLflow's 1000 values and 100 parameters or tags per request
_Value: TypeAlias = Metric | Param | RunTag
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
_UNKNOWN = (*_REFUSED, "ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")
"""What servers answer that know no models or no data sets, those of MLflow 2 and 1, too."""


@dataclass
class _Batch:
    """Entries that are delivered by one request."""

    metrics: list[Metric] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[DatasetInput] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.metrics or self.parameters or self.tags or self.inputs)

    def has_room(self, entry: Entry) -> bool:
        """Whether an entry fits as well."""
        more = len(entry.values.get("values", ()))
        if entry.kind == METRICS:
            return not self.metrics or len(self.metrics) + more <= _MOST_METRICS
        kept = self.parameters if entry.kind == PARAMETERS else self.tags
        return entry.kind not in (PARAMETERS, TAGS) or not kept or len(kept) + more <= _MOST_OTHERS

    def add(self, entry: Entry) -> None:
        """Add an entry of metrics, parameters, tags or an input."""
        if entry.kind == INPUT:
            self.inputs.append(as_dataset(entry.values))
            return
        values = entry.values["values"]
        if entry.kind == METRICS:
            step = entry.values["step"]
            self.metrics += [Metric(name, value, entry.time, step) for name, value in values.items()]
        else:
            (self.parameters if entry.kind == PARAMETERS else self.tags).update(values)


class Delivery:
    """Delivers a journal; what was delivered is written beside it, so that another process continues from there.

    To deliver something twice does no harm: MLflow keeps one value for a metric of the same step, time and value, a
    run that was made is found by its tag, and a file is replaced.

    Args:
        journal: The journal.
        address: Address of the tracking; that in the journal if None.
    """

    def __init__(self, journal: Path, address: str | None = None) -> None:
        self.journal, self._address = journal, address
        self.delivered = Delivered.read(journal)
        self.delivered.trouble = self.delivered.refusal = self.delivered.sending = None
        self._client: MlflowClient | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to deliver."""
        return remainder(self.journal, self.delivered).is_empty

    def attempt(self) -> bool:
        """Deliver what is left, as far as MLflow takes it; whether it took everything."""
        known = self.delivered
        known.trouble = known.refusal = None
        try:
            self._attempt()
        except UserError as error:
            known.trouble = redact(str(error))
            known.refusal = None if isinstance(error, NoAnswerError) else known.trouble
        except Exception as error:  # noqa: BLE001 (every store that MLflow knows has errors of its own)
            known.trouble = redact((str(error).strip() or type(error).__name__).splitlines()[0])
            if not isinstance(error, MlflowException | OSError):
                print(redact(traceback.format_exc()), file=sys.stderr, flush=True)
        if known.trouble is not None:
            known.attempts += self._client is None
            known.sending = None
            self._client = None
        known.write(self.journal)
        return known.trouble is None

    def _attempt(self) -> None:
        with bounded_requests():
            if self._client is None:
                self._client = self._open()
                self.delivered.attempts += 1
                self.delivered.write(self.journal)
            self._send_entries(self._client)
        client = self._client
        steps: list[Callable[[MlflowClient], None]] = [self._send_files, self._send_models, self._send_status]
        if self.delivered.status and self.delivered.status[0] in ("KILLED", "FAILED"):
            steps.reverse()  # little time may be left
        failures: list[Exception] = []
        for step in steps:
            try:
                step(client)
            except Exception as error:  # noqa: BLE001 (a disk that takes no files does not keep the run's end back)
                failures.append(error)
        if failures:
            raise failures[0]

    def _open(self) -> MlflowClient:
        """Find the run, or make it."""
        opened, known = self._opened(), self.delivered
        stated = opened.values
        check_address(self.address)
        client = connect(self.address)
        known.run_id = known.run_id or stated["run_id"]
        if known.run_id is not None:
            known.experiment_id = check_run(client, known.run_id)
            return client
        known.experiment_id = open_experiment(client, stated["experiment"], stated["artifacts"])
        # The answer of an earlier attempt to make it may have been lost.
        made = client.search_runs([known.experiment_id], f"tags.`{KEY}` = '{stated['key']}'", max_results=1)
        run = (
            made[0]
            if made
            else client.create_run(
                known.experiment_id, start_time=opened.time, tags={**stated["tags"], KEY: stated["key"]}
            )
        )
        known.run_id = run.info.run_id
        return client

    @property
    def address(self) -> str:
        """Address of the tracking."""
        stated = self._address or self._opened().values["address"]
        return os.environ.get("MLFLOW_TRACKING_URI", stated) if HIDDEN in stated else stated

    def _opened(self) -> Entry:
        """The entry that says what run the journal belongs to."""
        for entry in read_entries(self.journal):
            if entry.kind == OPEN:
                return entry
        raise UserError(f"{self.journal} does not say what run it belongs to")

    def _send_entries(self, client: MlflowClient) -> None:
        """Deliver metrics, parameters and tags in order, and note files and how the run ended."""
        known, batch, end = self.delivered, _Batch(), self.delivered.offset
        files, models, status, unreadable = list(known.files), list(known.models), known.status, 0
        for entry in read_entries(self.journal, known.offset):
            if not batch.has_room(entry):
                self._send(client, batch)
                batch = _Batch()
                self._advance(end, files, models, status, unreadable)
                unreadable = 0
            end = entry.offset
            if entry.kind in (METRICS, PARAMETERS, TAGS, INPUT):
                batch.add(entry)
            elif entry.kind == FILE:
                place = (entry.values["path"], entry.values["folder"])
                files = [*(kept for kept in files if kept != place), place]
            elif entry.kind == MODEL:
                models = [*models, entry.values]
            elif entry.kind == END:
                status = entry.values["status"], entry.time
            elif entry.kind == OPEN:
                status = "RUNNING", entry.time
            unreadable += not entry.is_readable
        if end > known.offset:
            self._send(client, batch)
            self._advance(end, files, models, status, unreadable)

    def _advance(self, offset: int, files: list[Any], models: list[Any], status: Any, unreadable: int) -> None:
        known = self.delivered
        known.offset, known.files, known.models, known.status = offset, list(files), list(models), status
        known.unreadable += unreadable
        known.write(self.journal)

    def _send(self, client: MlflowClient, batch: _Batch) -> None:
        if batch.is_empty:
            return
        run = self._run
        if batch.inputs:
            self._unless_refused(
                client, "what the run takes its data from", lambda: client.log_inputs(run, batch.inputs)
            )
        if batch.parameters:
            # A parameter of a run can't be changed: those of a resumed run that differ stay as they were first.
            there = client.get_run(run).data.params
            batch.parameters = {name: value for name, value in batch.parameters.items() if name not in there}
        metrics: list[_Value] = [*batch.metrics]
        others: list[_Value] = [Param(name, value) for name, value in batch.parameters.items()]
        others += [RunTag(name, value) for name, value in batch.tags.items()]
        # One entry may hold more than MLflow takes at once.
        fits = len(metrics) <= _MOST_METRICS and len(others) <= _MOST_OTHERS
        parts = [metrics + others] if fits else [*_parts(metrics, _MOST_METRICS), *_parts(others, _MOST_OTHERS)]
        for part in parts:
            self._send_part(client, part)

    def _send_part(self, client: MlflowClient, part: list[_Value]) -> None:
        """Deliver some values; those that MLflow refuses are counted and left out."""
        try:
            _log(client, self._run, part)
        except MlflowException as error:
            if error.error_code not in _REFUSED or not self._is_active(client):
                raise
            if len(part) > 1:
                for value in part:
                    self._send_part(client, [value])
                return
            self.delivered.refused += 1
            print(redact(f"MLflow refuses {part[0]}: {error}"), file=sys.stderr, flush=True)
        else:
            self.delivered.metrics += sum(isinstance(value, Metric) for value in part)

    def _send_files(self, client: MlflowClient) -> None:
        known = self.delivered
        for path, folder in list(known.files):
            source, others = self.journal.parents[1] / path, [kept for kept in known.files if kept != (path, folder)]
            if source.is_file():
                # The last of all from now on: one that cannot be copied does not keep the others back for good.
                known.files, known.sending = [*others, (path, folder)], path
                known.write(self.journal)
                with bounded_requests(FILE_S):
                    client.log_artifact(self._run, str(source), folder or None)
            else:
                known.missing += 1
            known.files, known.sending = others, None
            known.write(self.journal)

    def _send_models(self, client: MlflowClient) -> None:
        known = self.delivered
        for stated in list(known.models):
            file = self.journal.parents[1] / stated["path"]
            known.sending = stated["path"]
            known.write(self.journal)
            if file.is_file():
                with bounded_requests(FILE_S):
                    send = partial(log_model, client, self._run, file, stated)
                    self._unless_refused(client, f"the model {stated['name']}", send)
            else:
                known.missing += 1
            known.models, known.sending = known.models[1:], None
            known.write(self.journal)

    def _unless_refused(self, client: MlflowClient, what: str, send: Callable[[], None]) -> None:
        """Deliver something; what MLflow refuses is counted and left out."""
        try:
            send()
        except MlflowException as error:
            if error.error_code not in _UNKNOWN or not self._is_active(client):
                raise
            self.delivered.refused += 1
            print(redact(f"MLflow refuses {what}: {error}"), file=sys.stderr, flush=True)

    def _is_active(self, client: MlflowClient) -> bool:
        """Whether the run was not deleted."""
        return client.get_run(self._run).info.lifecycle_stage == LifecycleStage.ACTIVE

    def _send_status(self, client: MlflowClient) -> None:
        if self.delivered.status is None:
            return
        word, when = self.delivered.status
        with bounded_requests():
            if word == "RUNNING":
                client.update_run(self._run, status=word)
            else:
                client.set_terminated(self._run, word, when)
        self.delivered.status = None
        self.delivered.write(self.journal)

    @property
    def _run(self) -> str:
        run_id = self.delivered.run_id
        assert run_id is not None, "it was opened"
        return run_id


def _parts(values: list[_Value], most: int) -> list[list[_Value]]:
    return [values[start : start + most] for start in range(0, len(values), most)]


def _log(client: MlflowClient, run_id: str, values: list[_Value]) -> None:
    if values:
        metrics = [value for value in values if isinstance(value, Metric)]
        parameters = [value for value in values if isinstance(value, Param)]
        client.log_batch(run_id, metrics, parameters, [value for value in values if isinstance(value, RunTag)])
