"""Copies files to and from a helper pod: in parts, each of which can be repeated; what is there already is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from finetune_client.errors import ClientError, RefusedError
from finetune_client.home import at_home
from finetune_client.transfer.pod import Helper
from finetune_client.transfer.server import PARTIAL, sha256_of
from finetune_trainer.files import Entry
from finetune_trainer.output.manifest import MANIFEST, Manifest

PART_BYTES = 4 << 20
SENDINGS = 3
"""How often a file is copied whose checksum is wrong, before that is an error."""


@dataclass(frozen=True)
class Progress:
    """How far a copy is."""

    file: str
    done: int
    """Bytes of all files."""
    total: int


Tell = Callable[[Progress], None]


class Count:
    """Counts the bytes of a copy, and tells them."""

    def __init__(self, total: int, tell: Tell) -> None:
        self._total, self._tell, self._done = total, tell, 0

    def add(self, file: str, count: int) -> None:
        """Some bytes of a file are there."""
        self._done += count
        self._tell(Progress(file, self._done, self._total))


def manifest_of(helper: Helper, folder: str, expected: str | None) -> tuple[bytes, Sequence[Entry]]:
    """The manifest of a result, and its files.

    Raises:
        ClientError: it is not the one that the job's status names, or no manifest at all.
    """
    text = helper.read(f"{folder}/{MANIFEST}", 0, PART_BYTES * 4)
    if expected and hashlib.sha256(text).hexdigest() != expected:
        message = f"{folder}/{MANIFEST} is not the manifest of the job: its checksum differs from status.output.manifestSHA256"
        raise ClientError(message, "somebody has changed the result on the claim; do not use it")
    try:
        entries = Manifest.model_validate_json(text).files
    except ValidationError as error:
        raise ClientError(f"{folder}/{MANIFEST} is no manifest", "is the trainer image one of your own?", str(error)) from error
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.is_absolute() or ".." in path.parts:
            raise ClientError(f"{folder}/{MANIFEST} names {entry.path!r}, outside of the folder", "do not use the result")
    return text, entries


def fetch(helper: Helper, source: str, target: Path, size: int, sha256: str, count: Count) -> None:
    """Copy a file here, from where an earlier copy has come to.

    Raises:
        ClientError: its checksum is wrong, however often it is copied.
        OSError: it cannot be written.
    """
    if target.is_file() and target.stat().st_size == size and sha256_of(target) == sha256:
        count.add(target.name, size)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    for sending in range(SENDINGS):
        have = partial.stat().st_size if partial.is_file() else 0
        if have > size:
            partial.unlink()
            have = 0
        count.add(target.name, have if not sending else have - size)
        with partial.open("ab") as file:
            while have < size:
                data = helper.read(source, have, min(PART_BYTES, size - have))
                if not data:
                    break
                file.write(data)
                have += len(data)
                count.add(target.name, len(data))
        if sha256_of(partial) == sha256:
            partial.replace(target)
            return
        partial.unlink()
    message = f"{source} has another checksum than its manifest says: it was damaged on the claim"
    raise ClientError(message, "do not use the result; `finetune retry` makes another one")


def send(helper: Helper, source: Path, target: str, count: Count) -> None:
    """Copy a file to the claim, from where an earlier copy has come to.

    Raises:
        ClientError: the claim is full, or the checksum is wrong however often the file is copied.
        OSError: it cannot be read.
    """
    size, sha256 = source.stat().st_size, sha256_of(source)
    there = helper.get("digest", path=target)
    if there.get("sizeBytes") == size and there.get("sha256") == sha256:
        count.add(source.name, size)
        return
    have = min(int(there.get("partialBytes") or 0), size)
    for sending in range(SENDINGS):
        count.add(source.name, have if not sending else -size)
        with source.open("rb") as file:
            file.seek(have)
            if not size:
                helper.put("file", path=target, offset=0)
            while data := file.read(PART_BYTES):
                helper.put("file", data, path=target, offset=have)
                have += len(data)
                count.add(source.name, len(data))
        try:
            helper.put("name", path=target, sha256=sha256)
        except RefusedError as error:
            if error.status != 422:
                raise
            have = 0
        else:
            return
    raise ClientError(f"{source} arrives with another checksum each time", "does something change the file meanwhile?")


def files_of(names: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    """Files, and what each is called below the target: its own name, or its path in a folder that is named.

    Raises:
        ClientError: one is not there.
    """
    for name in names:
        path = at_home(name)
        if path.is_dir():
            found = sorted(inner for inner in path.rglob("*") if inner.is_file() and not inner.name.endswith(PARTIAL))
            yield from ((inner, f"{path.resolve().name}/{inner.relative_to(path).as_posix()}") for inner in found)
        elif path.is_file():
            yield path, path.name
        else:
            raise ClientError(f"there is no file {name} here", "name files or folders of this machine")
