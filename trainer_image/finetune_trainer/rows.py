"""Read a JSONL file of rows {instruction, context (optional), response}, refusing broken ones by line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.errors import DatasetInvalid, DatasetNotFound

if TYPE_CHECKING:
    from pathlib import Path

SHOWN_ROWS = 5
"""How many broken rows a message lists: enough to see the pattern, and the count tells the rest."""

_TYPES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Row:
    """One example to learn from."""

    instruction: str
    context: str
    """Empty when the row has none."""
    response: str
    line: int
    """Line in the file, from 1."""


def read_rows(path: Path, name: str) -> list[Row]:
    """Read all rows of a file; blank lines are skipped.

    Args:
        path: the file.
        name: the file as the user wrote it, for messages.

    Raises:
        DatasetNotFound: the file is missing or cannot be read.
        DatasetInvalid: rows are broken, or there is none.
    """
    rows: list[Row] = []
    broken: list[str] = []
    try:
        with path.open("rb") as file:
            for line, data in enumerate(file, start=1):
                if data.strip():
                    try:
                        rows.append(_row(data, line))
                    except ValueError as error:
                        broken.append(f"{name}:{line}: {error}")
    except OSError as error:
        where = "" if str(path) == name else f" (looked for {path})"
        raise DatasetNotFound(f"{name}: cannot read the data file{where}: {error.strerror}") from None
    if broken:
        rest = len(broken) - SHOWN_ROWS
        more = [f"{name}: and {rest} more broken rows, {len(broken)} in all"] if rest > 0 else []
        raise DatasetInvalid("\n".join(broken[:SHOWN_ROWS] + more))
    if not rows:
        raise DatasetInvalid(f"{name}: the file has no rows")
    return rows


def _row(data: bytes, line: int) -> Row:
    """Check one line.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    try:
        value = json.loads(data.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise ValueError("the row is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the row is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("the row is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("the row must be an object with instruction and response")  # noqa: TRY004 - one kind of error for all broken rows
    context = "" if value.get("context") is None else _text(value, "context")
    return Row(_required(value, "instruction"), context, _required(value, "response"), line)


def _required(row: dict[str, object], key: str) -> str:
    if row.get(key) is None:
        raise ValueError(f"{key} is missing")
    text = _text(row, key)
    if not text.strip():
        raise ValueError(f"{key} is empty")
    return text


def _text(row: dict[str, object], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, not {_TYPES.get(type(value), type(value).__name__)}")  # noqa: TRY004 - as above
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} holds half of a surrogate pair") from None
    return value
