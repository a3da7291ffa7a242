"""Copies files to and from a helper pod: in parts, each of which can be repeated; what is there already is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from time import monotonic
from typing import Any

from pydantic import ValidationError

from finetune_client.errors import ClientError, RefusedError
from finetune_client.home import at_home
from finetune_client.transfer.names import require_different, target_name
from finetune_client.transfer.pod import Helper
from finetune_client.transfer.server import PARTIAL
from finetune_trainer.files import Entry
from finetune_trainer.output.manifest import MANIFEST, Manifest

Object = dict[str, Any]

PART_BYTES = 4 << 20
SENDINGS = 3
"""How often a file is copied whose checksum is wrong, before that is an error."""
ALIVE_SECONDS = 60.0
"""How often the pod is told that somebody is there, while a file of this machine is hashed."""
QUIET_SECONDS = 60.0
"""A file whose writer shows no life for this time is taken up by another one; a writer that comes back begins again."""


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

    def hashed(self, file: str, count: int, size: int) -> None:
        """Some bytes of a file are hashed."""
        self.add(f"{file} (checksum, {100 * count // size if size else 100}%)", 0)


def sha256_here(helper: Helper, path: Path, count: Count, every: float = ALIVE_SECONDS) -> str:
    """SHA-256 of a file of this machine; the pod hears of us meanwhile, and does not end.

    Raises:
        OSError: it cannot be read.
    """
    found, told, hashed, size = hashlib.sha256(), monotonic(), 0, path.stat().st_size
    with path.open("rb") as file:
        while data := file.read(PART_BYTES):
            found.update(data)
            hashed += len(data)
            if monotonic() - told >= every:
                helper.get("alive")
                count.hashed(path.name, hashed, size)
                told = monotonic()
    return found.hexdigest()


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
    if target.is_file() and target.stat().st_size == size and sha256_here(helper, target, count) == sha256:
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
        if sha256_here(helper, partial, count) == sha256:
            partial.replace(target)
            return
        partial.unlink()
    message = f"{source} has another checksum than its manifest says: it was damaged on the claim"
    raise ClientError(message, "do not use the result; `finetune retry` makes another one")


def send(helper: Helper, source: Path, target: str, count: Count) -> None:
    """Copy a file to the claim, from where an earlier copy has come to.

    Raises:
        ClientError: the claim is full, or the file arrives damaged however often it is copied.
        OSError: it cannot be read.
    """
    size, sha256, told = source.stat().st_size, sha256_here(helper, source, count), 0

    def hashed(done: int) -> None:
        count.hashed(source.name, done, size)

    for _ in range(SENDINGS):
        there = helper.ask_for_hash("GET", "digest", hashed, path=target, size=size)
        left = _left_by_others(helper, there)
        if there.get("sha256") == sha256:
            count.add(source.name, size - told)
            _drop(helper, target, left)
            return
        have = _begin(helper, target, sha256, left, size)
        count.add(source.name, have - told)
        told = have
        try:
            for sent in _parts(helper, source, target, sha256, have):
                count.add(source.name, sent)
                told += sent
            helper.ask_for_hash("PUT", "name", hashed, path=target, sha256=sha256)
        except RefusedError as error:
            if error.status not in {409, 422}:  # another command has taken the file up, or it is damaged
                raise
        else:
            _drop(helper, target, left)
            return
    message = f"{source} does not arrive as it is here, however often it is sent"
    raise ClientError(message, "does something change the file meanwhile, or another command copy it, too?")


def _parts(helper: Helper, source: Path, target: str, sha256: str, have: int) -> Iterator[int]:
    """Send what is missing of a file; give the sizes of the parts."""
    with source.open("rb") as file:
        file.seek(have)
        while data := file.read(PART_BYTES):
            helper.put("file", data, path=target, sha256=sha256, offset=have)
            have += len(data)
            yield len(data)


def _left_by_others(helper: Helper, there: Object) -> list[Object]:
    """What others have left of a file, of this content or another, and do not write any more."""
    others = [item for item in there.get("partials") or () if not helper.is_named(str(item["writer"]))]
    return [item for item in others if item["quietSeconds"] >= QUIET_SECONDS or not helper.is_at_work(str(item["writer"]))]


def _begin(helper: Helper, target: str, sha256: str, left: Sequence[Object], size: int) -> int:
    """Begin a file, or take up most of what was left of the same; give how much is there."""
    same = [item for item in left if item["sha256"] == sha256 and item["sizeBytes"] <= size]
    most = max(same, key=lambda item: int(item["sizeBytes"]), default=None)
    begun = helper.put("begin", path=target, sha256=sha256, take=str(most["writer"]) if most else "")
    return min(int(begun["partialBytes"]), size)


def _drop(helper: Helper, target: str, left: Sequence[Object]) -> None:
    """Delete what others have left of a file that is complete now, unless they may come back."""
    for item in left:
        if not helper.is_at_work(str(item["writer"])):
            helper.put("drop", path=target, sha256=str(item["sha256"]), writer=str(item["writer"]))


def files_of(names: Sequence[str | Path]) -> Iterator[tuple[Path, str]]:
    """Files, and what each is called below the target: its own name, or its path in a folder that is named.

    Raises:
        ClientError: one is not there, or two would have one name.
    """
    require_different(names)
    for name in names:
        path = at_home(name)
        if path.is_dir():
            found = sorted(inner for inner in path.rglob("*") if inner.is_file() and not inner.name.endswith(PARTIAL))
            yield from ((inner, f"{target_name(name)}/{inner.relative_to(path).as_posix()}") for inner in found)
        elif path.is_file():
            yield path, target_name(name)
        else:
            raise ClientError(f"there is no file {name} here", "name files or folders of this machine")
