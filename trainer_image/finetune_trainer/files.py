"""Files: write atomically, sync to the disk, and describe by size and digest."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable

LFS_POINTER = b"version https://git-lfs"
"""How a pointer of Git LFS begins: a small file in the place of a large one."""

CHUNK_BYTES = 16 * 2**20
"""How much is written and added to the digest at a time: it stays in the CPU's cache between the two."""

ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that tell that there is no such file. Any other one tells only that it cannot be read now."""

_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""Error numbers of a file system that has no way to sync."""


class Entry(BaseModel):
    """One file of the result, or of a checkpoint."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    path: str
    """Relative to the folder that is described."""
    size_bytes: int
    sha256: str


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees the old or the new content, never a part of it, even after a crash.

    Raises:
        OSError: the folder is missing, not writable or full.
    """
    # Processes of different hosts may have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync a file that was just written to the disk, or the names in a folder. A file system that cannot do that is no error.

    Raises:
        OSError: the volume is full or not writable.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def make_draft(folder: Path, name: str) -> Path:
    """Make an empty folder in which something of this name is prepared. A later draft of it has another name: a worker that
    was taken for lost may still be writing into an earlier one.

    Raises:
        OSError: the volume is full or not writable.
    """
    draft = folder / f".{name}-{secrets.token_hex(4)}.tmp"
    draft.mkdir(parents=True)
    return draft


def remove_drafts(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the drafts in a folder: those that cannot be removed stay. Nobody who is at work may need one."""
    found: list[Path] = []
    with suppress(OSError):
        found = [path for path in folder.iterdir() if names.fullmatch(path.name)]
    for path in found:
        shutil.rmtree(path, ignore_errors=True)


def describe_file(folder: Path, name: str) -> Entry:
    """Size and digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / name
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(path=name, size_bytes=path.stat().st_size, sha256=sha256)


def write_described(path: Path, parts: Iterable[bytes | memoryview]) -> Entry:
    """Write a file, and sync it to the disk; return its size and digest, which are computed while it is written.

    Raises:
        OSError: the volume is full or not writable.
    """
    whole, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            for start in range(0, len(part), CHUNK_BYTES):
                chunk = part[start : start + CHUNK_BYTES]
                file.write(chunk)
                whole.update(chunk)
            size += len(part)
        file.flush()
        _sync(file.fileno())
    return Entry(path=path.name, size_bytes=size, sha256=whole.hexdigest())


def digest(*parts: bytes) -> str:
    """SHA-256 of several parts, in hex."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.hexdigest()
