"""The file metrics.jsonl.

A line is a logging step, an evaluation (it has `evalLoss`) or an event (it has `event`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from finetune_trainer.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path


METRICS_FILE = "metrics.jsonl"
"""One JSON object a line."""


def append_record(logs: Path, record: dict[str, Any]) -> None:
    """Append a record.

    Raises:
        OSError: the volume is full or not writable.
    """
    with (logs / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def forget_after(logs: Path, step: int) -> list[dict[str, Any]]:
    """Remove the records of steps after the given one; return the others.

    Raises:
        OSError: the volume is full or not writable.
    """
    path = logs / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _record(line).get("step", step + 1) <= step]
    if kept != lines:
        write_atomically(path, b"".join(kept))
    return [json.loads(line) for line in kept]


def read_metrics(logs: Path) -> list[dict[str, Any]]:
    """All records of a run, in the order of the steps; none when nothing was recorded.

    Raises:
        OSError: the file cannot be read.
    """
    path = logs / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [record for record in map(_record, lines) if record]


def _record(line: bytes) -> dict[str, Any]:
    """The record in a line; an incomplete line has none."""
    with suppress(ValueError):
        record: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return record
    return {}
