"""Fetch one file: go on where an earlier try has ended, believe no length, and verify what is known of the content."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.errors import NO_SPACE
from finetune_trainer.fetch.errors import Changed, FetchError, Temporary
from finetune_trainer.fetch.web import Web, redacted

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

    from finetune_trainer.fetch.meter import Meter
    from finetune_trainer.fetch.place import Place

TRIES = 8
"""How often a file is tried without progress; with the pauses some two minutes. Then the operator decides."""

PAUSE_SECONDS = (1.0, 60.0)
"""First and longest pause between two tries."""

LONGEST_WAIT_SECONDS = 600.0
"""What a server may ask for with Retry-After; for more the pod does not wait."""

PROGRESS_BYTES = 2**20
"""What counts as progress: a connection that gives some bytes and breaks is no reason to try for ever."""

CHUNK_BYTES = 2**20

Sleep = Callable[[float], None]


def unsigned(_: str) -> Mapping[str, str]:
    """No headers: everybody may read it."""
    return {}


@dataclass(frozen=True)
class RemoteFile:
    """A file at its origin, and what is known of its content."""

    name: str
    """Its path below the folder."""
    address: str
    size: int | None = None
    etag: str | None = None
    """Set where the address does not fix the content: each answer has to have it."""
    sha256: str | None = None
    git_sha1: str | None = None
    """Digest of a Git blob, which the hub has of small files."""
    sign: Callable[[str], Mapping[str, str]] = field(default=unsigned, repr=False)


@dataclass
class Downloads:
    """What all files of a fetch share."""

    web: Web
    place: Place
    meter: Meter
    sleep: Sleep

    def fetch(self, file: RemoteFile) -> None:
        """Have a file under its own name.

        Raises:
            FetchError: it cannot be fetched, or has another content.
            Changed: there is another version by now.
        """
        if self.place.has(file.name, file.size):
            self.meter.at(file.name, file.size or 0)
            return
        part = self.place.part(file.name)
        self._check_room(file, part)
        try:
            resumed = self._download(file, part)
            if resumed and not _is_intact(file, part):
                part.write_bytes(b"")  # the beginning may be of another file: only a whole download tells
                self._download(file, part)
            if not _is_intact(file, part):
                part.unlink()
                raise FetchError(
                    "ChecksumMismatch", f"{redacted(file.address)}: {_expected(file)}, and what was fetched is another file"
                )
            self.place.take(part, file.name)
        except OSError as error:
            raise _volume_error(error, file) from error

    def _check_room(self, file: RemoteFile, part: Path) -> None:
        """Say at once that a file will not fit, instead of after hours."""
        usage = shutil.disk_usage(part.parent)
        needed = (file.size or 0) - part.stat().st_size
        if usage.total > 0 and usage.free < needed:
            raise FetchError(
                "FetchVolumeFull",
                f"the claim has no room for {file.name}: {needed:,} more bytes are needed, and {usage.free:,} are free",
            )

    def _download(self, file: RemoteFile, part: Path) -> bool:
        """Complete the part; return whether an earlier try had begun it."""
        resumed, failures, reached = part.stat().st_size > 0, 0, part.stat().st_size
        while True:
            try:
                self._try(file, part)
            except Temporary as problem:
                size = part.stat().st_size if part.exists() else 0
                failures = 1 if size >= reached + PROGRESS_BYTES else failures + 1
                reached = max(reached, size)
                self.sleep(_pause(problem, failures))
                resumed = resumed or size > 0
                part.touch()
            else:
                return resumed

    def _try(self, file: RemoteFile, part: Path) -> None:
        have = part.stat().st_size
        if have and have == file.size:
            self.meter.at(file.name, have)
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and file.etag and not file.etag.startswith("W/"):
            headers["If-Range"] = file.etag
        with self.web.get(file.address, headers, file.sign) as answer:
            have = _begin(file, part, answer, have)
            with part.open("ab") as output:
                for chunk in answer.iter_raw():  # as it arrives: what is collected first is lost with the connection
                    output.write(chunk)
                    have += len(chunk)
                    self.meter.at(file.name, have)
                    if file.size is not None and have > file.size:
                        break
        self._check_size(file, part, have)

    def _check_size(self, file: RemoteFile, part: Path, have: int) -> None:
        if file.size is None or have == file.size:
            self.meter.expect(file.name, have)
            return
        if have > file.size:
            part.write_bytes(b"")
            raise Temporary(f"{redacted(file.address)}: more than the {file.size:,} bytes were sent that it has")
        raise Temporary(f"{redacted(file.address)}: the connection was lost after {have:,} of {file.size:,} bytes")


def _begin(file: RemoteFile, part: Path, answer: httpx2.Response, have: int) -> int:
    """Check the head of an answer; return the bytes that stay."""
    if file.etag is not None and validator(answer) != file.etag and answer.status_code != 416:
        raise Changed
    if answer.status_code == 206:
        start, total = content_range(answer)
        if start == have and total in {None, file.size}:
            return have
    if answer.status_code != 200:
        part.write_bytes(b"")
        raise Temporary(f"{redacted(file.address)}: HTTP {answer.status_code} with another part than was asked for")
    part.write_bytes(b"")
    return 0


def content_range(answer: httpx2.Response) -> tuple[int | None, int | None]:
    """The first byte of an answer, and the size of the whole file, where it says so."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if found is None:
        return None, None
    return (int(found[1]) if found[1] else None), (None if found[2] == "*" else int(found[2]))


def validator(answer: httpx2.Response) -> str | None:
    """What changes with the content: the ETag, else the time of the last change."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified")


def _pause(problem: Temporary, failures: int) -> float:
    """How long to wait before the next try.

    Raises:
        FetchError: there is none.
    """
    if failures >= TRIES:
        raise FetchError("FetchFailed", f"{problem}; {failures} tries without progress", retryable=True)
    shortest, longest = PAUSE_SECONDS
    if (problem.after or 0.0) > LONGEST_WAIT_SECONDS:
        raise FetchError("FetchFailed", f"{problem}; the server asks to come again in {problem.after:.0f} s", retryable=True)
    return problem.after if problem.after is not None else min(shortest * 2 ** (failures - 1), longest)


def _is_intact(file: RemoteFile, part: Path) -> bool:
    """Whether the content has the known digest."""
    size = part.stat().st_size
    if file.sha256 is None and file.git_sha1 is None:
        return True
    whole = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with part.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            whole.update(chunk)
    return whole.hexdigest() == (file.sha256 or file.git_sha1 or "").lower()


def _expected(file: RemoteFile) -> str:
    return f"its SHA-256 has to be {file.sha256}" if file.sha256 else f"its Git blob has to be {file.git_sha1}"


def _volume_error(error: OSError, file: RemoteFile) -> FetchError:
    if error.errno in NO_SPACE:
        return FetchError("FetchVolumeFull", f"the claim is full: {file.name} does not fit")
    return FetchError("FetchFailed", f"{file.name} cannot be written to the claim: {error.strerror or error}", retryable=True)
