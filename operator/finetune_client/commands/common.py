"""What the commands share: the login, how objects are printed, and words for times and sizes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from finetune_client.client import FinetuneClient
from finetune_client.errors import one_line
from finetune_client.job import Job
from finetune_operator.constants import GROUP, KIND


def client_of(options: argparse.Namespace) -> FinetuneClient:
    """The client that the options of a command ask for."""
    return FinetuneClient(options.context, options.namespace)


def say(text: str) -> None:
    """Print a line, which has no control characters of others."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(f"{text}\n")


def print_objects(jobs: Sequence[Job], form: str, *, as_list: bool = False) -> None:
    """Print jobs as JSON, YAML or names, as kubectl does."""
    if form == "name":
        for job in jobs:
            say(f"{KIND.lower()}.{GROUP}/{job.name}")
        return
    objects: list[Mapping[str, Any]] = [dict(job.raw) for job in jobs]
    as_list = as_list or len(jobs) != 1
    print_value({"apiVersion": "v1", "kind": "List", "items": objects} if as_list else objects[0], form)


def print_value(value: Mapping[str, Any], form: str) -> None:
    """Print it as JSON, or as YAML."""
    if form == "json":
        say(json.dumps(value, indent=4, ensure_ascii=False))
        return
    from finetune_client.yaml_text import render

    sys.stdout.write(render(json.loads(json.dumps(value))))


class Waiting:
    """Tells on standard error what a job waits for, once each time that this changes."""

    def __init__(self) -> None:
        self._told = ""

    def __call__(self, job: Job) -> None:
        """Tell it, if it has changed."""
        words = f"{job}: {job.phase}" + (f" ({plain(job.reason)})" if job.reason else "")
        if words != self._told:
            note(words)
            self._told = words


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def age(time: datetime | None) -> str:
    """How long ago a time was, in its largest unit."""
    return "" if time is None else duration((datetime.now(UTC) - time).total_seconds())


def duration(seconds: float) -> str:
    """A duration in at most two units, the smaller one only where it matters."""
    whole = max(0, int(seconds))
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{unit}{rest}{small_unit}" if whole < 10 * size and rest else f"{whole // size}{unit}"
    return f"{whole}s"


def size(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number(value: float | None) -> str:
    """A loss with four digits, or nothing."""
    return "" if value is None else f"{value:.4g}"


def plain(text: object) -> str:
    """A text of others on one line, without what steers a terminal."""
    return one_line(str(text))


def bar(percent: float, width: int = 20) -> str:
    """A progress bar, in characters that the terminal has."""
    full = round(min(100.0, max(0.0, percent)) * width / 100)
    try:
        "█░".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#" * full + "-" * (width - full)
    return "█" * full + "░" * (width - full)
