"""The folder on the claim: finished files by their own names, unfinished ones aside, and a marker when all are there.

    <folder>/<version>/train.jsonl
    <folder>/<version>/.parts/<file>.<owner>.part     what a job has of a file, by the job's UID
    <folder>/<version>/.fetched.json                  written last

A file gets its name by a rename once it is whole and verified. So several jobs may fetch the same at once: each has parts of
its own, and what one has finished the others take. What a job that is gone has left of a file the next one goes on with.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_trainer.files import digest, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

MARKER = ".fetched.json"
PARTS = ".parts"

ABANDONED_SECONDS = 180.0
"""Age of a part that nobody writes any more, by the clock of the volume: a connection may be silent for a minute, and each
new try begins with a sign of life."""


class _Marker(BaseModel):
    """What a finished folder holds."""

    model_config = ConfigDict(frozen=True)

    origin: str
    files: dict[str, int]
    """File → size."""


class Place:
    """The folder of one version of the files of an address."""

    def __init__(self, folder: Path, version: str, owner: str) -> None:
        self.folder = folder / version
        self._owner = digest(owner.encode())[:16]

    def finished(self) -> dict[str, int] | None:
        """The files and their sizes if all of them are there; None: something is missing."""
        try:
            marker = _Marker.model_validate_json((self.folder / MARKER).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return marker.files if all(self.has(name, size) for name, size in marker.files.items()) else None

    def has(self, name: str, size: int | None) -> bool:
        """Whether a file is there under its own name; with this size, if one is known."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return size is None or (self.folder / name).stat().st_size == size
        return False

    def finish(self, origin: str, names: Sequence[str]) -> dict[str, int]:
        """Write the marker; return the sizes of the files."""
        sizes = {name: (self.folder / name).stat().st_size for name in names}
        write_atomically(self.folder / MARKER, _Marker(origin=origin, files=sizes).model_dump_json().encode())
        self._tidy()
        return sizes

    def part(self, name: str) -> Path:
        """Where this job's part of a file is; what an abandoned one holds is taken over."""
        parts = self.folder / PARTS
        parts.mkdir(parents=True, exist_ok=True)
        mine = parts / f"{digest(name.encode())[:16]}.{self._owner}.part"
        if not mine.exists():
            self._adopt(mine)
        mine.touch()
        return mine

    def take(self, part: Path, name: str) -> None:
        """Give a whole file its name. One that another job has finished meanwhile stays: somebody may be reading it."""
        target = self.folder / name
        size = part.stat().st_size
        if self.has(name, size):
            part.unlink()
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(target)

    def _adopt(self, mine: Path) -> None:
        """Rename the largest abandoned part of the same file; of several who try, one succeeds."""
        own = mine.with_suffix(".now")
        own.touch()
        now = own.stat().st_mtime
        own.unlink()
        begin = mine.name.partition(".")[0]
        found = [
            (path.stat().st_size, path) for path in mine.parent.glob(f"{begin}.*.part") if _age(path, now) > ABANDONED_SECONDS
        ]
        for _, path in sorted(found, reverse=True):
            with suppress(FileNotFoundError):
                path.rename(mine)
                return

    def _tidy(self) -> None:
        """Remove what nobody needs any more of a folder that is complete."""
        parts = self.folder / PARTS
        for path in parts.glob(f"*.{self._owner}.part"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            parts.rmdir()


def _age(path: Path, now: float) -> float:
    with suppress(FileNotFoundError):
        return now - path.stat().st_mtime
    return 0.0
