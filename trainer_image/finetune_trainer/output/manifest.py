"""The completion manifest: which files make up the result, with sizes and checksums. It is written last.

A folder with a manifest holds a complete result; without one, its files must not be used.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.files import Entry, describe_file, write_atomically
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.progress import Output

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from finetune_trainer.config.run import Run

MANIFEST = "manifest.json"


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


def write_manifest(run: Run, files: Iterable[str], about: Manifest) -> Output:
    """Describe the files of the result and declare it complete.

    Args:
        run: its output folder has the files.
        files: the files of the result, relative to the folder.
        about: the manifest without its files.

    Raises:
        OSError: the folder cannot be read or written.
        OutputInUse: another run has taken the folder.
    """
    folder = run.output_dir
    entries = tuple(describe_file(folder, name) for name in sorted(files))
    manifest = about.model_copy(update={"files": entries})
    text = json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=2)
    check_still_held(run)  # the digests of a large model take a while
    write_atomically(folder / MANIFEST, text.encode() + b"\n")
    return _summary(folder, manifest)


def find_result(folder: Path, run_name: str, part: str = "") -> Output | None:
    """The result of an earlier attempt at the same run, if it is complete and undamaged.

    Args:
        folder: the output folder.
        run_name: which run.
        part: a folder that belongs to the complete result, too; empty: there is none.
    """
    manifest = _read(folder)
    if manifest is None or manifest.run_name != run_name:
        return None
    if part and not any(entry.path.startswith(f"{part}/") for entry in manifest.files):
        return None
    try:
        intact = all(describe_file(folder, entry.path) == entry for entry in manifest.files)
        return _summary(folder, manifest) if intact else None
    except OSError:
        return None


def attempt_of(folder: Path, run_name: str) -> int:
    """Which attempt at a run has left the result in a folder; 0: none has."""
    manifest = _read(folder)
    return manifest.attempt if manifest is not None and manifest.run_name == run_name else 0


def is_finished(folder: Path) -> bool:
    """Whether a folder holds the result of any run."""
    return _read(folder) is not None


def remove_result(folder: Path) -> None:
    """Make way for a new result: the manifest goes first, then the files that it names.

    Raises:
        OSError: a file cannot be removed.
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
    except (OSError, ValidationError):
        return None


def _summary(folder: Path, manifest: Manifest) -> Output:
    return Output(
        format=manifest.format,
        path=str(folder),
        files=len(manifest.files),
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        manifest_sha256=hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(),
    )
