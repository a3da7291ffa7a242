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
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint.identity import Identity
from finetune_trainer.checkpoint.marker import MARKER, Marker, Unusable, read_marker
from finetune_trainer.errors import ConfigError
from finetune_trainer.files import sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})")
_DRAFT = re.compile(r"\.step-\d{8,}\.tmp")


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
