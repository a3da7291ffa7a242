"""Rows in a JSONL file: {instruction, context (optional), response}, or {text}. Broken rows are reported by line.

A file is read in pieces of whole lines, so a process never holds more than one piece of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import DatasetInvalid, DatasetNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SHOWN_ROWS = 5
"""How many broken rows a message lists: enough to see the pattern. The message gives the total."""

PIECE_BYTES = 512 * 1024
"""Size of a piece: some thousand rows, which are tokenised together."""

COLUMNS = ("instruction", "context", "response", "text")
"""Columns that are read."""

REQUIRED = frozenset({"instruction", "response", "text"})
"""Columns of which every row has one."""

_TYPES = {"bool": "true or false", "int": "a number", "float": "a number", "list": "a list", "dict": "an object",
          "bytes": "binary data", "datetime": "a time", "date": "a date", "Decimal": "a decimal number"}  # fmt: skip
"""Names of Python's types → what they are in words. Only the first ones are in JSON."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example to learn from."""

    instruction: str
    context: str
    """Empty when the row has none."""
    response: str
    line: int
    """Line in the file, from 1."""
    text: str = ""
    """The whole example as it is; then instruction, context and response are empty."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive lines of a file."""

    offset: int
    """Offset of the piece in the file, in bytes."""
    size: int
    """Size of the piece, in bytes."""
    line: int
    """Number of its first line, from 1."""


class BrokenRows:
    """Rows of one file that cannot be used: messages for the first ones, and the total."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shown: list[str] = []
        self.count = 0

    def add(self, reasons: Iterable[tuple[int, str]]) -> None:
        """Add lines, each with what is wrong with it."""
        for line, why in reasons:
            self.count += 1
            if len(self._shown) < SHOWN_ROWS:
                self._shown.append(f"{self._name}:{line}: {why}")

    def join(self, other: BrokenRows) -> None:
        """Add the broken rows of another file."""
        self.count += other.count
        self._shown = (self._shown + other._shown)[:SHOWN_ROWS]

    def refuse(self) -> None:
        """Raise an error for all broken rows, if there are any.

        Raises:
            DatasetInvalid: there are broken rows.
        """
        rest = self.count - len(self._shown)
        more = [f"{self._name}: and {rest} more broken rows, {self.count} in all"] if rest > 0 else []
        if self._shown:
            raise DatasetInvalid("\n".join(self._shown + more))


def check_rows(path: Path, name: str, piece_bytes: int = PIECE_BYTES) -> int:
    """Read all rows of a file, and return their number. Blank lines are skipped.

    Args:
        path: the file.
        name: the file as the user wrote it, for messages.
        piece_bytes: how much of it is read at a time.

    Raises:
        DatasetNotFound: the file is missing or cannot be read.
        DatasetInvalid: rows are broken, or there are no rows.
    """
    broken, count = BrokenRows(name), 0
    for piece in pieces(path, name, piece_bytes):
        rows, reasons = read_piece(path, name, piece)
        broken.add(reasons)
        count += len(rows)
    broken.refuse()
    if not count:
        raise DatasetInvalid(f"{name}: the file has no rows")
    return count


def pieces(path: Path, name: str, size: int = PIECE_BYTES) -> Iterator[Piece]:
    """Cut a file into pieces of whole lines, each of about the given size in bytes.

    Raises:
        DatasetNotFound: the file is missing or cannot be read.
    """
    offset, line = 0, 1
    try:
        with path.open("rb") as file:
            while data := file.read(size):
                data += file.readline()
                yield Piece(offset, len(data), line)
                offset, line = offset + len(data), line + data.count(b"\n")
    except OSError as error:
        raise unreadable(path, name, error) from None


def read_piece(path: Path, name: str, piece: Piece) -> tuple[list[Row], list[tuple[int, str]]]:
    """Read a piece; return its rows, and its broken lines, each with the reason.

    Raises:
        DatasetNotFound: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(piece.offset)
            lines = file.read(piece.size).split(b"\n")
    except OSError as error:
        raise unreadable(path, name, error) from None
    rows: list[Row] = []
    broken: list[tuple[int, str]] = []
    for line, data in enumerate(lines, start=piece.line):
        if data.strip():
            try:
                rows.append(check_row(parse_line(data, line), line))
            except ValueError as error:
                broken.append((line, str(error)))
    return rows, broken


def unreadable(path: Path, name: str, error: OSError) -> DatasetNotFound:
    """The error for a data file that cannot be read; it says where the file was looked for."""
    where = "" if str(path) == name else f" (looked for {path})"
    return DatasetNotFound(f"{name}: cannot read the data file{where}: {error.strerror}")


def parse_line(data: bytes, line: int) -> Any:
    """The value on one line.

    Raises:
        ValueError: the line is broken; the message is the reason.
    """
    try:
        return json.loads(data.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise ValueError("the row is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the row is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("the row is nested too deeply") from None


def check_row(value: Any, line: int) -> Row:
    """Check the value of one line. Of a row of the other kind the columns are missing or blank, as in a CSV file.

    Raises:
        ValueError: the row is broken; the message is the reason.
    """
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict):
        raise ValueError("the row must be an object with instruction and response, or with text")  # noqa: TRY004 - one kind of error for all broken rows
    if _is_text(value):
        return Row("", "", "", line, _required(value, "text"))
    context = "" if value.get("context") is None else _text(value, "context")
    return Row(_required(value, "instruction"), context, _required(value, "response"), line)


def _is_text(row: dict[str, Any]) -> bool:
    """Whether a row is of the kind with a text, which may be blank where there is no instruction."""
    if not _is_blank(row, "instruction") or not _is_blank(row, "response"):
        return False
    return not _is_blank(row, "text") or (row.get("text") is not None and row.get("instruction") is None)


def _is_blank(row: dict[str, Any], key: str) -> bool:
    value = row.get(key)
    return value is None or (isinstance(value, str) and not value.strip())


def _required(row: dict[str, Any], key: str) -> str:
    if row.get(key) is None:
        raise ValueError(f"{key} is missing")
    text = _text(row, key)
    if not text.strip():
        raise ValueError(f"{key} is empty")
    return text


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, not {_TYPES.get(type(value).__name__, type(value).__name__)}")  # noqa: TRY004 - as above
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} holds half of a surrogate pair") from None
    return value
