"""Which files of a folder are data, and to which split they belong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finetune_trainer.config.run import LOGS
from finetune_trainer.data.readers import is_data_file

if TYPE_CHECKING:
    from pathlib import Path

PROGRESS = f"{LOGS}/progress.json"
"""A file of every run's output folder."""

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → words for it in names of files and folders, as the library `datasets` knows them."""

_SEPARATORS = r"[-._ 0-9]"
_WORDS = {
    split: re.compile(rf"(^|{_SEPARATORS})({'|'.join(words)})({_SEPARATORS}|$)", re.IGNORECASE)
    for split, words in KEYWORDS.items()
}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\b.*")
"""Name of a file of a split in several parts, in the folder `data`, as the hub stores them."""


def data_files(folder: Path, output: Path) -> list[Path]:
    """The data files below a folder, in order.

    Args:
        folder: the folder.
        output: the output folder of the run; what lies below it or below that of another run is no data.

    Raises:
        OSError: the folder cannot be read.
    """
    found = {path.parent.parent.resolve() for path in folder.rglob(PROGRESS)} | {output.resolve()}
    results = {path for path in found if folder.resolve() in path.parents}
    return [path for path in sorted(folder.rglob("*")) if _is_data(path, folder) and results.isdisjoint(path.resolve().parents)]


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and is_data_file(path) and path.is_file()


def splits_of(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Split → its files, by the names of files and folders; if none names a split, all files are of the split train."""
    found: dict[str, list[Path]] = {}
    for path in files:
        split = _split_of(path.relative_to(folder))
        if split is not None:
            found.setdefault(split, []).append(path)
    return found or ({"train": files} if files else {})


def _split_of(path: Path) -> str | None:
    shard = _SHARD.fullmatch(path.name) if path.parent.name == "data" else None
    if shard:
        return shard[1]
    for part in (*path.parent.parts, path.name):
        split = next((split for split, word in _WORDS.items() if word.search(part)), None)
        if split is not None:
            return split
    return None
