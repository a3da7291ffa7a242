"""The folder of checkpoints: write one, find those that are complete or fit a run, and remove old ones.

    <output_dir>/checkpoints/step-00000120/
        rank-00000.safetensors   weights that learn and the optimizer's tensors; with FSDP one file for each rank
        state.json               everything else: learning-rate schedule, gradient scaler, sums of the log
        complete.json            the marker, written last: what it belongs to, all files with sizes and SHA-256

A checkpoint is written under a temporary name and renamed at the end, so that a folder of this name is complete even
if the process is killed. Where another run has one of the same step, the name gets a number: step-00000120-2. No file
is opened before its digest is compared with the marker's, and no file is a pickle.
"""

from __future__ import annotations

import logging
import re
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from finetune_trainer import files
from finetune_trainer.checkpoint.identity import Identity
from finetune_trainer.checkpoint.marker import Marker, Unusable, read_marker, write_marker
from finetune_trainer.errors import ConfigError
from finetune_trainer.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_DRAFT = re.compile(r"\.step-\d{8,}(-[0-9a-f]+)?\.tmp")
"""Earlier releases had one name for the drafts of all attempts."""


def folder_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08}"


def begin(folder: Path, step: int) -> Path:
    """Make the empty folder, under its temporary name, for a new checkpoint.

    Raises:
        OSError: the volume is full or not writable.
    """
    return files.make_draft(folder, folder_name(step))


def discard(draft: Path) -> None:
    """Remove an incomplete checkpoint to free its space."""
    shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path) -> None:
    """Remove incomplete checkpoints that processes which were killed have left. None may be in the making."""
    files.remove_drafts(folder, _DRAFT)


def complete(draft: Path, marker: Marker) -> Path:
    """Write the marker, and rename the folder: the checkpoint is complete now.

    Raises:
        OSError: the volume is full or not writable.
    """
    write_marker(draft, marker)
    files.sync(draft)
    final = _place(draft.parent, marker)
    shutil.rmtree(final, ignore_errors=True)
    draft.replace(final)
    files.sync(final.parent)
    return final


def _place(folder: Path, marker: Marker) -> Path:
    """Where a checkpoint of this step goes: where there is none, or one that is broken or this run's own, which it could not
    resume from, or did not have to.

    Raises:
        OSError: an existing one cannot be read at present.
    """
    name, number = folder_name(marker.step), 1
    path = folder / name
    while _is_anothers(path, marker.identity.run):
        number += 1
        path = folder / f"{name}-{number}"
    return path


def _is_anothers(path: Path, owner: str) -> bool:
    """Whether there is a complete checkpoint of another run."""
    try:
        return read_marker(path).identity.run not in (owner, _finished(owner))
    except Unusable:
        return False


def _finished(owner: str) -> str:
    """The owner that the checkpoints of a run have after its end."""
    return f"{owner}, finished"


def complete_ones(folder: Path) -> Iterator[tuple[Path, Marker]]:
    """Complete checkpoints of any run, the newest first. Incomplete ones are named in the log.

    Raises:
        OSError: one cannot be read at present.
    """
    for path in _checkpoints(folder):
        try:
            yield path, read_marker(path)
        except Unusable as reason:
            skip(path, reason)


def markers(folder: Path) -> Iterator[Marker]:
    """Markers of the complete checkpoints of any run, the newest first.

    Raises:
        OSError: one cannot be read at present.
    """
    for path in _checkpoints(folder):
        with suppress(Unusable):
            yield read_marker(path)


def candidates(folder: Path, identity: Identity) -> Iterator[tuple[Path, Marker]]:
    """Complete checkpoints that this run can resume from, the newest first. Others are named in the log.

    Raises:
        OSError: one cannot be read at present.
    """
    for path, marker in complete_ones(folder):
        difference = marker.difference(identity)
        if difference is None:
            yield path, marker
        else:
            skip(path, Unusable(difference))


def refuse(option: str, path: Path, reason: Exception) -> ConfigError:
    """The error for a checkpoint that an option names and that cannot be used."""
    return ConfigError([f"{option}: {path} cannot be used: {reason}"])


@contextmanager
def refusing(option: str, path: Path) -> Iterator[None]:
    """Let the block read the checkpoint that an option names.

    Raises:
        ConfigError: it cannot be used.
        OSError: it cannot be read at present, and may be after a restart.
    """
    try:
        yield
    except (Unusable, OSError) as reason:
        if is_transient(reason):
            raise
        raise refuse(option, path, reason) from None


def skip(path: Path, reason: Unusable) -> None:
    """Log that a checkpoint is not used, and why."""
    log.warning("checkpoint %s is skipped: %s", path, reason)


def is_owned(folder: Path, owner: str) -> bool:
    """Whether the folder has a complete checkpoint of the owner.

    Raises:
        OSError: one cannot be read at present.
    """
    return any(marker.identity.run == owner for marker in markers(folder))


def prune(folder: Path, owner: str, keep: int, newest: Path | None = None) -> None:
    """Remove all but the last written checkpoints of the owner, and broken ones. Those of other runs are kept, and those
    that cannot be read at present.

    Args:
        folder: where they are.
        owner: name of the run.
        keep: how many are kept.
        newest: the checkpoint that was written last; clocks are not reliable. Its step may be lower than that of older
            ones, which the run could not resume from.

    Raises:
        OSError: the folder cannot be read at present.
    """
    owned = []
    for path in _checkpoints(folder):
        try:
            marker = read_marker(path)
        except Unusable:
            shutil.rmtree(path, ignore_errors=True)
            continue
        except OSError as error:
            log.warning("checkpoint %s stays, since it cannot be read: %s", path, error)
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
        OSError: the volume is full or not writable, or one cannot be read at present.
    """
    for path in _checkpoints(folder):
        with suppress(Unusable):
            marker = read_marker(path)
            if marker.identity.run == owner:
                finished = marker.identity.model_copy(update={"run": _finished(owner)})
                write_marker(path, marker.model_copy(update={"identity": finished}))


def _checkpoints(folder: Path) -> list[Path]:
    """All folders that have the name of a checkpoint, the newest first.

    Raises:
        OSError: the folder cannot be read at present.
    """
    try:
        names = {path: match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    except files.ABSENT:
        return []
    found = [path for path in names if path.is_dir()]
    return sorted(found, key=lambda path: (int(names[path][1]), int(names[path][2] or 1)), reverse=True)
