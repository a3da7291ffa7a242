"""The file metrics.jsonl.

A line is a logging step, an evaluation (it has `evalLoss`) or an event (it has `event`).
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


METRICS_FILE = "metrics.jsonl"
"""One JSON object a line."""


def read_metrics(logs: Path) -> list[dict[str, Any]]:
    """All records of a run, in the order of the steps; none when nothing was recorded.

    Raises:
        OSError: the file cannot be read.
    """
    path = logs / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [record for record in map(_record, lines) if record]


def _record(line: bytes) -> dict[str, Any]:
    """What a line of metrics.jsonl tells; a torn one tells nothing."""
    with suppress(ValueError):
        record: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return record
    return {}
