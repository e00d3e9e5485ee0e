"""What of a journal MLflow has, and what is left."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flowmatch_rl.callbacks.addresses import place_of
from flowmatch_rl.callbacks.journal import (
    END,
    FILE,
    INPUT,
    METRICS,
    MODEL,
    OPEN,
    PARAMETERS,
    TAGS,
    log_of,
    read_entries,
)
from flowmatch_rl.files import shown, write_json


@dataclass
class Delivered:
    """What of a journal has been delivered, kept beside it as ``NAME.delivered.json``.

    Attributes:
        run_id: MLflow's identifier of the run; None before MLflow was reached.
        experiment_id: That of its experiment.
        offset: Bytes of the journal that have been read.
        metrics: Values of metrics that were delivered.
        files: Files to copy, each with its folder among the artifacts.
        models: Models to log, as the journal describes them.
        status: The run's status that MLflow is to have, and the time; None if it has it.
        refused: Values that MLflow refuses, which are left out.
        unreadable: Lines of the journal that are no entries, which are left out.
        missing: Files that were gone before they could be copied.
        sending: File that is being copied.
        attempts: Attempts so far.
        trouble: Why the latest attempt failed; None if it did not.
        refusal: Why no attempt can succeed, in words for the user; None if one may.
    """

    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    metrics: int = 0
    files: list[tuple[str, str]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=list)
    status: tuple[str, int] | None = None
    refused: int = 0
    unreadable: int = 0
    missing: int = 0
    sending: str | None = None
    attempts: int = 0
    trouble: str | None = None
    refusal: str | None = None

    @classmethod
    def read(cls, journal: Path) -> "Delivered":
        """What has been delivered of a journal; nothing if there is no record, or a damaged one.

        To deliver again what is there already does no harm.
        """
        try:
            known = json.loads(record_of(journal).read_text(encoding="utf-8"))
            kept = cls(**{entry.name: known[entry.name] for entry in fields(cls)})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls()
        kept.files = [(path, folder) for path, folder in kept.files]
        return kept

    def write(self, journal: Path) -> None:
        """Write it beside a journal."""
        write_json(record_of(journal), asdict(self))


@dataclass(frozen=True)
class Remainder:
    """What of a journal is left to deliver.

    Attributes:
        metrics: Values of metrics.
        all_metrics: Those that the journal holds.
        files: Files.
        models: Models.
        others: Parameters, tags, and how the run ended.
        unreadable: Lines of the journal that are no entries, the last one of a killed process among them.
    """

    metrics: int
    all_metrics: int
    files: int
    models: int
    others: int
    unreadable: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left."""
        return not (self.metrics or self.files or self.models or self.others)

    def __str__(self) -> str:
        parts = []
        if self.metrics:
            parts.append(f"{self.metrics} of {self.all_metrics} metrics")
        if self.files:
            parts.append(f"{self.files} file{'s' if self.files > 1 else ''}")
        if self.models:
            parts.append(f"{self.models} model{'s' if self.models > 1 else ''}")
        if self.others and not self.metrics:
            parts.append("how the run ended")
        return " and ".join(parts) or "nothing"


def remainder(journal: Path, delivered: Delivered) -> Remainder:
    """What of a journal is left to deliver.

    Args:
        journal: The journal.
        delivered: What has been delivered of it.
    """
    rest = list(read_entries(journal, delivered.offset))
    metrics = sum(len(entry.values["values"]) for entry in rest if entry.kind == METRICS)
    files = {(entry.values["path"], entry.values["folder"]) for entry in rest if entry.kind == FILE}
    others = sum(entry.kind in (OPEN, END, TAGS, PARAMETERS, INPUT) for entry in rest)
    size, read = journal.stat().st_size, rest[-1].offset if rest else delivered.offset
    return Remainder(
        metrics=metrics,
        all_metrics=metrics + delivered.metrics,
        files=len(files.union(delivered.files)),
        models=len(delivered.models) + sum(entry.kind == MODEL for entry in rest),
        others=others + (delivered.status is not None),
        unreadable=delivered.unreadable + sum(not entry.is_readable for entry in rest) + (size > read),
    )


def what_is_left(journal: Path, delivered: Delivered, left: Remainder, address: str) -> str:
    """What of a journal MLflow does not have, why, and how to deliver it, in a line; empty if it has everything.

    Args:
        journal: The journal.
        delivered: What has been delivered of it.
        left: What has not.
        address: Address of the tracking.
    """
    lines = []
    if not left.is_empty:
        reason = f" ({delivered.trouble})" if delivered.trouble else ""
        lines.append(
            f"tracking: {left} were not delivered to {place_of(address)}{reason}; deliver them with: "
            f"flowmatch-rl deliver {shown(journal.parents[1])}"
        )
    if delivered.refused:
        lines.append(f"MLflow refused {delivered.refused} values, see {shown(log_of(journal))}")
    if delivered.missing:
        lines.append(f"{delivered.missing} files were gone before they were copied to MLflow")
    if left.unreadable:
        lines.append(f"{left.unreadable} lines of {shown(journal)} are broken off and were left out")
    return "; ".join(lines)


def record_of(journal: Path) -> Path:
    """The file that says what of a journal has been delivered."""
    return journal.with_suffix(".delivered.json")
