"""Read the rows of a data file: lines or an array of JSON, CSV or Parquet, compressed or not.

A name is opened as it is: no character in it is a wildcard. Values keep their types, so what is no text is noticed.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from finetune_trainer.data.jsonl import COLUMNS, REQUIRED, parse_line, unreadable
from finetune_trainer.errors import DatasetInvalid
from finetune_trainer.files import LFS_POINTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Values = Iterator[tuple[int, Any]]
    """Line or number of a row, from 1, and its value, which may be no mapping; a ValueError where it cannot be read."""

_COMPRESSED: dict[bytes, Callable[[Path], IO[bytes]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}  # type: ignore[dict-item]
"""First bytes of a compressed file → how it is opened."""

_REFUSED = {
    b"PK\x03\x04": "it is a zip archive or an Excel file: unpack it, or save the table as CSV",
    b"\x28\xb5\x2f\xfd": "it is compressed with Zstandard: unpack it, or compress it with gzip",
    LFS_POINTER: "it is a pointer of Git LFS, not the data: run `git lfs pull` where it was cloned",
}
"""First bytes of files that are not read → what to do instead."""

_PARQUET = b"PAR1"

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of data files in a folder; `.gz`, `.bz2` or `.xz` may follow."""

_CHUNK = 32 * 1024
"""Characters of a JSON array that are read at once."""


def is_json_lines(path: Path) -> bool:
    """Whether a file can be read line by line as it is: it is neither compressed, nor a table, nor one JSON value.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        begin = file.read(64)
        if begin.startswith((*_COMPRESSED, *_REFUSED, _PARQUET)) or _suffix(path) in (".csv", ".tsv", ".parquet"):
            return False
        file.seek(0)
        return not _is_array(file) and (path.suffix.lower() != ".json" or not _spans_lines(file))


def read_rows(path: Path, name: str) -> Values:
    """The rows of a file.

    Raises:
        DatasetNotFound: the file cannot be opened.
        DatasetInvalid: it cannot be read as what it is, or a column is no text; the message names it.
    """
    try:
        with _opened(path, name) as (file, kind):
            yield from kind(file, name)
    except UnicodeDecodeError:
        raise DatasetInvalid(f"{name}: the file is not UTF-8 text") from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DatasetInvalid(f"{name}: the compressed file is cut off or broken: {error}") from None
    except OSError as error:
        raise unreadable(path, name, error) from None


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[IO[bytes], Callable[[IO[bytes], str], Values]]]:
    """The file, unpacked, and the function that reads its kind."""
    with path.open("rb") as file:
        begin = file.read(64)
    for magic, advice in _REFUSED.items():
        if begin.startswith(magic):
            raise DatasetInvalid(f"{name}: {advice}")
    opener = next((opener for magic, opener in _COMPRESSED.items() if begin.startswith(magic)), None)
    kinds = {".csv": _read_csv, ".tsv": _read_tsv, ".parquet": _read_parquet}
    kind = _read_parquet if begin.startswith(_PARQUET) else kinds.get(_suffix(path), _read_json)
    with opener(path) if opener else path.open("rb") as file:
        yield file, kind


def _suffix(path: Path) -> str:
    """The suffix that tells the kind of a file: `.csv` of `rows.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".bz2", ".xz")), "")


def is_data_file(path: Path) -> bool:
    """Whether a file of a folder is taken for data, by its name."""
    return _suffix(path) in SUFFIXES


def _read_json(file: IO[bytes], _: str) -> Values:
    if _is_array(file):
        with io.TextIOWrapper(file, "utf-8-sig") as text:
            yield from _Array(text).read()
        return
    if _spans_lines(file):
        try:
            yield 1, json.load(file)
        except ValueError:
            file.seek(0)  # rather a broken first line
        else:
            return
    for number, data in enumerate(file, start=1):
        if data.strip():
            yield number, _parsed(data, number)


def _is_array(file: IO[bytes]) -> bool:
    """Whether the first character is a bracket; the file is at its start before and after."""
    begin = file.read(_CHUNK).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return begin.startswith(b"[")


def _spans_lines(file: IO[bytes]) -> bool:
    """Whether the file begins with an object that does not end on its line; the file is at its start before and after."""
    first = next((line for line in file if line.strip()), b"")
    file.seek(0)
    return first.lstrip().startswith(b"{") and isinstance(_parsed(first, 1), ValueError)


def _parsed(data: bytes, line: int) -> Any:
    try:
        return parse_line(data, line)
    except ValueError as error:
        return error


class _Array:
    """Reads the items of a JSON array one after the other, with a part of the text in memory."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._text = ""
        self._line = 1
        self._decode = json.JSONDecoder().raw_decode

    def read(self) -> Values:
        """The items, each with the line in which it begins."""
        self._next()
        self._drop(1)
        while self._next() not in ("]", ""):
            line = self._line
            item, end = self._item()
            yield line, item
            if isinstance(item, ValueError):
                return
            self._drop(end)
            if self._next() == ",":
                self._drop(1)
            elif self._next() not in ("]", ""):
                yield self._line, ValueError("a comma is missing between two rows of the array")
                return
        if not self._next():
            yield self._line, ValueError("the array has no end: the file is cut off")

    def _item(self) -> tuple[Any, int]:
        """The item that begins here and its length; a ValueError if there is none."""
        while True:
            try:
                return self._decode(self._text)
            except json.JSONDecodeError as error:
                if not self._grow():
                    return ValueError(f"the row is not JSON: {error.msg}"), 0
            except RecursionError:
                return ValueError("the row is nested too deeply"), 0

    def _next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            rest = self._text.lstrip()
            self._drop(len(self._text) - len(rest))
            if rest or not self._grow():
                return rest[:1]

    def _drop(self, count: int) -> None:
        self._line += self._text.count("\n", 0, count)
        self._text = self._text[count:]

    def _grow(self) -> bool:
        more = self._stream.read(max(_CHUNK, len(self._text)))
        self._text += more
        return bool(more)


def _read_tsv(file: IO[bytes], name: str) -> Values:
    return _read_csv(file, name, delimiter="\t")


def _read_csv(file: IO[bytes], name: str, delimiter: str = ",") -> Values:
    """All values are text, even 007 and NA. A line without any value is skipped, as spreadsheets write them."""
    csv.field_size_limit(2**31 - 1)
    with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next(lines, [])
            _refuse_doubles(header, name)
            for cells in lines:
                if len(cells) > len(header):
                    yield lines.line_num, ValueError(f"the line has {len(cells)} values, the header {len(header)} columns")
                elif any(cell.strip() for cell in cells):
                    yield lines.line_num, dict(zip(header, cells, strict=False))
        except csv.Error as error:
            yield lines.line_num, ValueError(f"the line is not CSV: {error}")


def _read_parquet(file: IO[bytes], name: str) -> Values:
    """Only our columns are read; what is no text is refused for the whole column."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        _refuse_doubles(table.schema_arrow.names, name)
        if table.metadata.num_rows:
            ours = [column for column in COLUMNS if column in table.schema_arrow.names]
            for column in ours:
                _refuse_type(table.schema_arrow.field(column).type, column, name)
            if REQUIRED.isdisjoint(ours):
                yield 1, dict.fromkeys(table.schema_arrow.names)
                return
            batches = table.iter_batches(batch_size=1000, columns=ours)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except UnicodeDecodeError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DatasetInvalid(f"{name}: cannot read the data: it is no complete Parquet file ({reason})") from None


def _refuse_doubles(columns: list[str], name: str) -> None:
    for column in COLUMNS:
        if columns.count(column) > 1:
            raise DatasetInvalid(f"{name}: the column {column} is there {columns.count(column)} times")


def _refuse_type(kind: Any, column: str, name: str) -> None:
    from pyarrow import types

    plain = kind.value_type if types.is_dictionary(kind) else kind
    checks = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(check(plain) for check in checks):
        raise DatasetInvalid(f"{name}: the column {column} has the type {kind}; it must be text (string)")
