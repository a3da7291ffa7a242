"""Find the data: a file of JSON lines; or a JSONL copy of another kind of file, of a folder, or of a data set of the hub.

The driver makes the copy once, below the output folder: so the workers need no access to the hub, all data is tokenised
in the same way, and a later attempt at the run uses the same rows.

    <output_dir>/.tokens/copies/<key>/train.jsonl, validation.jsonl
"""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.copies import copies_of
from finetune_trainer.data.jsonl import check_rows, unreadable
from finetune_trainer.data.readers import is_json_lines

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run

log = logging.getLogger(__name__)

TRAIN, VALIDATION = ("train",), ("validation", "test", "train")
"""Names of the split for train_file, and for validation_file: the first one that the data set has is used."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_NAME = re.compile(r".*\.(jsonl?|ndjson|csv|parquet|txt|tsv|gz|bz2|xz|zip)", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A JSONL file of rows."""

    path: Path
    name: str
    """Its name in messages: the file as the user wrote it, or data set and split, as in `owner/name[train]`."""


def find_sources(run: Run) -> tuple[Source, Source | None]:
    """Find the rows to train on, and those to evaluate on; None: they are split off the former.

    Raises:
        DatasetNotFound: there is no such file, folder, or data set on the hub, or it has no such split.
        DatasetInvalid: it cannot be read.
        OutputVolumeFull, OutputNotWritable: the output folder cannot take the copy.
    """
    dataset = run.config.dataset
    validation = None
    if run.validation_file is not None and dataset.validation_file is not None:
        validation = _find(run, dataset.validation_file, run.validation_file, [VALIDATION])[0]
    wanted: list[tuple[str, ...]] = [TRAIN] if validation else [TRAIN, ("validation",)]
    train, *own = _find(run, dataset.train_file, run.train_file, wanted)
    return train, validation or next(iter(own), None)


def check(run: Run) -> None:
    """Refuse data that cannot be read and rows that are broken, before anything heavy starts.

    Raises:
        DatasetNotFound, OutputVolumeFull, OutputNotWritable: as `find_sources`.
        DatasetInvalid: rows are broken, or there are no rows.
    """
    for source in find_sources(run):
        if source is not None:
            check_rows(source.path, source.name)


def remove(run: Run) -> None:
    """Remove the tokens and copies of a run whose result is complete."""
    shutil.rmtree(run.tokens, ignore_errors=True)


def _find(run: Run, name: str, path: Path, wanted: list[tuple[str, ...]]) -> list[Source]:
    """The first wanted split, and those of the others that exist.

    Args:
        run: its output folder takes a copy.
        name: file, folder or data set as the user wrote it.
        path: its place, if it is local.
        wanted: for each split its possible names, the preferred one first.
    """
    on_hub = not path.exists() and _HUB_NAME.fullmatch(name) and not _FILE_NAME.fullmatch(name)
    if not path.is_dir() and not on_hub and _is_json_lines(path, name):
        return [Source(path, name)]
    folder = copies_of(run, name, path, wanted)
    copies = [_first_of(folder, splits) for splits in wanted]
    return [Source(copy, name if path.is_file() else f"{name}[{copy.stem}]") for copy in copies if copy]


def _is_json_lines(path: Path, name: str) -> bool:
    try:
        return is_json_lines(path)
    except OSError as error:
        raise unreadable(path, name, error) from None


def _first_of(folder: Path, splits: tuple[str, ...]) -> Path | None:
    return next((path for path in (folder / f"{split}.jsonl" for split in splits) if path.is_file()), None)
