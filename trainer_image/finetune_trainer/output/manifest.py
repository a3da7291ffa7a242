"""The completion manifest: which files make up the result, with sizes and checksums. It is written last.

A folder with a manifest holds a complete result; without one, its files must not be used.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.config.run import MERGED
from finetune_trainer.files import ABSENT, Entry, describe_file, make_draft, remove_drafts, sync, write_atomically
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.progress import Output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from finetune_trainer.config.run import Run

MANIFEST = "manifest.json"

_EXPORT = "export"

_EXPORTS = re.compile(rf"\.{_EXPORT}(-[0-9a-f]+\.tmp)?")
"""Names of drafts of a result. Earlier releases had one for all attempts."""


class Manifest(BaseModel):
    """The file manifest.json."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    version: Literal[1] = 1
    format: Literal["peft-adapter", "full-model"]
    base_model: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    run_name: str | None = None
    attempt: int = 1
    files: tuple[Entry, ...] = ()


def begin_export(run: Run) -> Path:
    """Make a folder in which the result is prepared: on the same volume, so that files can be renamed.

    Raises:
        OSError: the volume is full or not writable.
    """
    return make_draft(run.output_dir, _EXPORT)


def remove_exports(run: Run) -> None:
    """Remove drafts of a result that processes which were killed have left. None may be in the making."""
    remove_drafts(run.output_dir, _EXPORTS)


def write_manifest(run: Run, files: Iterable[str], about: Manifest, sync: Callable[[Path], None] = sync) -> Output:
    """Describe the files of the result, sync them to the disk, and declare it complete.

    Args:
        run: its output folder has the files.
        files: the files of the result, relative to the folder.
        about: the manifest without its files.
        sync: syncs a file, or the names in a folder.

    Raises:
        OSError: the folder cannot be read or written.
        OutputInUse: another run has taken the folder.
    """
    folder = run.output_dir
    entries = tuple(describe_file(folder, name) for name in sorted(files))
    manifest = about.model_copy(update={"files": entries})
    text = json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=2)
    paths = [folder / entry.path for entry in entries]
    # The checkpoints are removed next: from then on there is nothing but the result.
    folders = {parent for path in paths for parent in path.parents if parent.is_relative_to(folder)}
    for path in (*paths, *sorted({folder, *folders})):
        sync(path)
    check_still_held(run)  # the digests of a large model take a while
    write_atomically(folder / MANIFEST, text.encode() + b"\n")
    sync(folder)
    return _summary(folder, manifest)


def result_of(run: Run) -> Output | None:
    """The complete result of an earlier attempt at this run, or of earlier workers of this one; None: there is none.

    Raises:
        OSError: it cannot be read at present.
    """
    if run.run_name is None:
        return None
    general = run.config.general
    part = MERGED if general.merge_adapter and general.lora_config is not None else ""
    return find_result(run.output_dir, run.run_name, part)


def find_result(folder: Path, run_name: str, part: str = "") -> Output | None:
    """The result of an earlier attempt at the same run, if it is complete and undamaged.

    Args:
        folder: the output folder.
        run_name: which run.
        part: a folder that belongs to the complete result, too; empty: there is none.

    Raises:
        OSError: it cannot be read at present.
    """
    manifest = _read(folder)
    if manifest is None or manifest.run_name != run_name:
        return None
    if part and not any(entry.path.startswith(f"{part}/") for entry in manifest.files):
        return None
    try:
        intact = all(describe_file(folder, entry.path) == entry for entry in manifest.files)
        return _summary(folder, manifest) if intact else None
    except ABSENT:
        return None


def attempt_of(folder: Path, run_name: str) -> int:
    """Which attempt at a run has left the result in a folder; 0: none has.

    Raises:
        OSError: that cannot be read at present.
    """
    manifest = _read(folder)
    return manifest.attempt if manifest is not None and manifest.run_name == run_name else 0


def is_finished(folder: Path) -> bool:
    """Whether a folder holds the result of any run, or may hold one, since it cannot be read at present."""
    try:
        return holds_result(folder)
    except OSError:
        return True


def holds_result(folder: Path) -> bool:
    """Whether a folder holds the result of any run.

    Raises:
        OSError: that cannot be read at present.
    """
    return _read(folder) is not None


def remove_result(folder: Path) -> None:
    """Make way for a new result: the manifest goes first, then the files that it names.

    Raises:
        OSError: a file cannot be removed, or the manifest cannot be read.
    """
    manifest = _read(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    for entry in manifest.files if manifest else ():
        path = (folder / entry.path).resolve()
        if path.is_relative_to(folder.resolve()):
            path.unlink(missing_ok=True)


def _read(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (*ABSENT, ValidationError):
        return None


def _summary(folder: Path, manifest: Manifest) -> Output:
    return Output(
        format=manifest.format,
        path=str(folder),
        files=len(manifest.files),
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        manifest_sha256=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
    )
