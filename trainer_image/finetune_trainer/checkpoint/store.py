"""Checkpoints on disk: which are complete, which fit, and how one comes into being.

    <output_dir>/checkpoints/step-00000120/
        rank-00000.safetensors   weights that learn and the optimizer's tensors; with FSDP one file for each rank
        state.json               everything else: learning-rate schedule, gradient scaler, sums of the log
        complete.json            the marker, written last: what it belongs to, all files with sizes and SHA-256

It is written under a temporary name and renamed at the end, so that a folder of this name is whole, whatever happens
to the process. No file is opened before its digest is the marker's, and no file is a pickle.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.errors import ConfigError
from finetune_trainer.files import Entry, describe_file, sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

MARKER = "complete.json"
STATE = "state.json"

_NAME = re.compile(r"step-(\d{8,})")
_DRAFT = re.compile(r"\.step-\d{8,}\.tmp")


class Identity(BaseModel):
    """What a checkpoint has to have in common with a run that goes on from it exactly."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    run: str
    """Name of the run, or of this start of a run without a name."""
    configuration: str
    """SHA-256, in hex, of the settings that the weights depend on and of the tokenised rows."""
    world_size: int
    strategy: Literal["DDP", "FSDP"]

    @property
    def sharded(self) -> bool:
        """Whether each rank has a file of its own."""
        return self.strategy == "FSDP" and self.world_size > 1

    def shard(self, rank: int) -> str:
        """Name of the file with this rank's tensors."""
        return f"rank-{rank if self.sharded else 0:05}.safetensors"


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
        """In words, why a run may not go on from here by itself; None: it may."""
        mine = self.identity
        if mine.run != identity.run:
            return f"it belongs to another run, {mine.run}"
        if (mine.strategy, mine.world_size) != (identity.strategy, identity.world_size):
            there, here = (f"{one.strategy} with {one.world_size} workers" for one in (mine, identity))
            return f"it was made by {there}, this is {here}"
        return "the configuration or the rows have changed since" if mine.configuration != identity.configuration else None


class Unusable(Exception):  # noqa: N818 - it says what the checkpoint is
    """A folder that is no complete checkpoint, with the reason."""


def folder_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08}"


def begin(folder: Path, step: int) -> Path:
    """Make the empty folder, under its temporary name, that a checkpoint is written into.

    Raises:
        OSError: the volume is full or not writable.
    """
    draft = folder / f".{folder_name(step)}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def discard(folder: Path, step: int) -> None:
    """Remove a checkpoint that did not become complete, so that its space is free again."""
    shutil.rmtree(folder / f".{folder_name(step)}.tmp", ignore_errors=True)


def complete(draft: Path, marker: Marker) -> Path:
    """Write the marker, and give the checkpoint its name; from then on it counts.

    Raises:
        OSError: the volume is full or not writable.
    """
    path = draft / MARKER
    path.write_text(json.dumps(marker.model_dump(mode="json", by_alias=True), indent=2) + "\n", encoding="utf-8")
    sync(path)
    _sync_folder(draft)
    final = draft.with_name(folder_name(marker.step))
    # One that is there already was unusable: this run would have gone on from it.
    shutil.rmtree(final, ignore_errors=True)
    draft.replace(final)
    _sync_folder(final.parent)
    return final


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_marker(path: Path) -> Marker:
    """Read the marker of a checkpoint, and see that the files it names are there in their full size.

    Raises:
        Unusable: it is not complete.
    """
    try:
        marker = Marker.model_validate_json((path / MARKER).read_bytes())
    except FileNotFoundError:
        raise Unusable(f"it has no {MARKER}") from None
    except (OSError, ValidationError):
        raise Unusable(f"its {MARKER} cannot be read") from None
    names = {entry.path for entry in marker.files}
    if STATE not in names or any("/" in name for name in names):
        raise Unusable(f"its {MARKER} does not name the files of a checkpoint")
    for entry in marker.files:
        with suppress(OSError):
            if (path / entry.path).stat().st_size == entry.size_bytes:
                continue
        raise Unusable(f"{entry.path} is missing or cut off")
    return marker


def check(path: Path, marker: Marker, names: Iterable[str]) -> None:
    """See that files of a checkpoint are those that were written.

    Raises:
        Unusable: one is not.
    """
    entries = {entry.path: entry for entry in marker.files}
    for name in names:
        try:
            same = describe_file(path, name) == entries.get(name)
        except OSError as error:
            raise Unusable(f"{name} cannot be read: {error.strerror}") from None
        if not same:
            raise Unusable(f"{name} is not the file that was written")


def complete_ones(folder: Path) -> Iterator[tuple[Path, Marker]]:
    """Complete checkpoints, whosever they are, the newest first. Others are named in the log."""
    for path in _checkpoints(folder):
        try:
            yield path, read_marker(path)
        except Unusable as reason:
            skip(path, reason)


def candidates(folder: Path, identity: Identity) -> Iterator[tuple[Path, Marker]]:
    """Complete checkpoints that this run can go on from, the newest first. Others are named in the log."""
    for path, marker in complete_ones(folder):
        difference = marker.difference(identity)
        if difference is None:
            yield path, marker
        else:
            skip(path, Unusable(difference))


def refuse(option: str, path: Path, reason: Unusable) -> ConfigError:
    """The error that says why the checkpoint that an option asks for is not used."""
    return ConfigError([f"{option}: {path} cannot be used: {reason}"])


def skip(path: Path, reason: Unusable) -> None:
    """Say that a checkpoint is not used, and why."""
    log.warning("checkpoint %s is skipped: %s", path, reason)


def is_owned(folder: Path, owner: str) -> bool:
    """Whether the owner has a complete checkpoint there."""
    for path in _checkpoints(folder):
        with suppress(Unusable):
            if read_marker(path).identity.run == owner:
                return True
    return False


def prune(folder: Path, owner: str, keep: int, newest: Path | None = None) -> None:
    """Remove the owner's checkpoints but those written last, and what is left of unfinished ones. Other runs' are kept.

    Args:
        folder: where they are.
        owner: name of the run.
        keep: how many stay.
        newest: the one that was written last, whatever the clocks say. Its step may be lower than that of older ones,
            which the run could not go on from.
    """
    for path in folder.glob(".step-*.tmp"):
        if _DRAFT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    owned = []
    for path in _checkpoints(folder):
        try:
            marker = read_marker(path)
        except Unusable:
            shutil.rmtree(path, ignore_errors=True)
            continue
        if marker.identity.run == owner:
            owned.append((path == newest, marker.created_at, marker.step, path))
    for *_, path in sorted(owned, reverse=True)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _checkpoints(folder: Path) -> list[Path]:
    """All folders with the name of a checkpoint, the newest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
