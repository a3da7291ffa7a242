"""The marker of a checkpoint, complete.json: what the checkpoint belongs to, and its files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.checkpoint.identity import Identity
from finetune_trainer.files import ABSENT, Entry, describe_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


MARKER = "complete.json"


STATE = "state.json"


class Marker(BaseModel):
    """The file complete.json."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    version: Literal[1] = 1
    identity: Identity
    step: Annotated[int, Field(ge=1)]
    """Optimizer steps done."""
    total_steps: int
    trainer_version: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    files: tuple[Entry, ...] = ()

    def difference(self, identity: Identity) -> str | None:
        """Why a run may not resume from this checkpoint by itself; None: it may."""
        mine = self.identity
        if mine.run != identity.run:
            return f"it belongs to another run, {mine.run}"
        if mine.packed is not None and mine.packed != identity.packed:
            there, here = ("packed", "padded") if mine.packed else ("padded", "packed")
            return f"it was made with {there} rows, which are {here} here"
        if mine.made_for != identity.made_for:
            return f"its steps have the rows for {mine.made_for} ranks, those of this run for {identity.made_for}"
        return "the configuration or the rows have changed since" if mine.configuration != identity.configuration else None


class Unusable(Exception):  # noqa: N818 - it says what the checkpoint is
    """A folder is not a complete checkpoint; the message is the reason.

    A checkpoint that cannot be read at present may be complete: that is an OSError, and nothing is concluded from it.
    """


def write_marker(path: Path, marker: Marker) -> None:
    """Write the marker of a checkpoint, and sync it to the disk.

    Raises:
        OSError: the volume is full or not writable.
    """
    text = json.dumps(marker.model_dump(mode="json", by_alias=True), indent=2) + "\n"
    write_atomically(path / MARKER, text.encode())


def read_marker(path: Path) -> Marker:
    """Read the marker of a checkpoint, and check that the files it names exist in their full size.

    Raises:
        Unusable: it is not complete.
        OSError: it cannot be read at present.
    """
    try:
        marker = Marker.model_validate_json((path / MARKER).read_bytes())
    except ABSENT:
        raise Unusable(f"it has no {MARKER}") from None
    except ValidationError:
        raise Unusable(f"its {MARKER} cannot be read") from None
    names = {entry.path for entry in marker.files}
    if STATE not in names or any("/" in name for name in names):
        raise Unusable(f"its {MARKER} does not name the files of a checkpoint")
    for entry in marker.files:
        try:
            whole = (path / entry.path).stat().st_size == entry.size_bytes
        except ABSENT:
            whole = False
        if not whole:
            raise Unusable(f"{entry.path} is missing or cut off")
    return marker


def check_files(path: Path, marker: Marker, names: Iterable[str]) -> None:
    """Check that files of a checkpoint are unchanged since they were written.

    Raises:
        Unusable: one is not.
        OSError: one cannot be read at present.
    """
    entries = {entry.path: entry for entry in marker.files}
    for name in names:
        try:
            same = describe_file(path, name) == entries.get(name)
        except ABSENT as error:
            raise Unusable(f"{name} cannot be read: {error.strerror}") from None
        if not same:
            raise Unusable(f"{name} is not the file that was written")
