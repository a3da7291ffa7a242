"""The folder of checkpoints: write one, find those that are complete or fit a run, and remove old ones.

    <output_dir>/checkpoints/step-00000120/
        rank-00000.safetensors   weights that learn and the optimizer's tensors; with FSDP one file for each rank
        state.json               everything else: learning-rate schedule, gradient scaler, sums of the log
        complete.json            the marker, written last: what it belongs to, all files with sizes and SHA-256

A checkpoint is written under a temporary name and renamed at the end, so that a folder of this name is complete even
if the process is killed. No file is opened before its digest is compared with the marker's, and no file is a pickle.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint.identity import Identity
from finetune_trainer.checkpoint.marker import Marker, Unusable, read_marker, write_marker
from finetune_trainer.errors import ConfigError

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
    """Make the empty folder, under its temporary name, for a new checkpoint.

    Raises:
        OSError: the volume is full or not writable.
    """
    draft = folder / f".{folder_name(step)}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def discard(folder: Path, step: int) -> None:
    """Remove an incomplete checkpoint to free its space."""
    shutil.rmtree(folder / f".{folder_name(step)}.tmp", ignore_errors=True)


def complete(draft: Path, marker: Marker) -> Path:
    """Write the marker, and rename the folder: the checkpoint is complete now.

    Raises:
        OSError: the volume is full or not writable.
    """
    write_marker(draft, marker)
    _sync_folder(draft)
    final = draft.with_name(folder_name(marker.step))
    # An existing one is unusable: otherwise this run would have resumed from it.
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
    """Complete checkpoints of any run, the newest first. Incomplete ones are named in the log."""
    for path in _checkpoints(folder):
        try:
            yield path, read_marker(path)
        except Unusable as reason:
            skip(path, reason)


def markers(folder: Path) -> Iterator[Marker]:
    """Markers of the complete checkpoints of any run, the newest first."""
    for path in _checkpoints(folder):
        with suppress(Unusable):
            yield read_marker(path)


def candidates(folder: Path, identity: Identity) -> Iterator[tuple[Path, Marker]]:
    """Complete checkpoints that this run can resume from, the newest first. Others are named in the log."""
    for path, marker in complete_ones(folder):
        difference = marker.difference(identity)
        if difference is None:
            yield path, marker
        else:
            skip(path, Unusable(difference))


def refuse(option: str, path: Path, reason: Unusable) -> ConfigError:
    """The error for a checkpoint that an option names and that cannot be used."""
    return ConfigError([f"{option}: {path} cannot be used: {reason}"])


def skip(path: Path, reason: Unusable) -> None:
    """Log that a checkpoint is not used, and why."""
    log.warning("checkpoint %s is skipped: %s", path, reason)


def is_owned(folder: Path, owner: str) -> bool:
    """Whether the folder has a complete checkpoint of the owner."""
    for path in _checkpoints(folder):
        with suppress(Unusable):
            if read_marker(path).identity.run == owner:
                return True
    return False


def prune(folder: Path, owner: str, keep: int, newest: Path | None = None) -> None:
    """Remove all but the last written checkpoints of the owner, and incomplete ones. Those of other runs are kept.

    Args:
        folder: where they are.
        owner: name of the run.
        keep: how many are kept.
        newest: the checkpoint that was written last; clocks are not reliable. Its step may be lower than that of older
            ones, which the run could not resume from.
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


def retire(folder: Path, owner: str) -> None:
    """Let the checkpoints of a finished run be found by their names only: the same command then trains anew.

    Raises:
        OSError: the volume is full or not writable.
    """
    for path in _checkpoints(folder):
        with suppress(Unusable):
            marker = read_marker(path)
            if marker.identity.run == owner:
                finished = marker.identity.model_copy(update={"run": f"{owner}, finished"})
                write_marker(path, marker.model_copy(update={"identity": finished}))


def _checkpoints(folder: Path) -> list[Path]:
    """All folders that have the name of a checkpoint, the newest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
