"""Files: write atomically, sync to the disk, and describe by size and digest."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


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
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Sync a file that was just written to the disk.

    Raises:
        OSError: the volume is full or not writable.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def describe_file(folder: Path, name: str) -> Entry:
    """Size and digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / name
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(path=name, size_bytes=path.stat().st_size, sha256=sha256)


def sync_and_describe(path: Path) -> Entry:
    """Sync a file that was just written to the disk; return its size and digest.

    Raises:
        OSError: the volume is full or not writable.
    """
    sync(path)
    return describe_file(path.parent, path.name)


def digest(*parts: bytes) -> str:
    """SHA-256 of several parts, in hex."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big"))
        whole.update(part)
    return whole.hexdigest()
