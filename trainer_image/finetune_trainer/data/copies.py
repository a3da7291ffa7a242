"""JSONL copies of data in other forms: arrays, CSV, Parquet and compressed files, folders, and data sets of the hub."""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from finetune_trainer.data.folders import data_files, splits_of
from finetune_trainer.data.jsonl import COLUMNS, REQUIRED, BrokenRows, check_row, unreadable
from finetune_trainer.data.readers import SUFFIXES, read_rows
from finetune_trainer.errors import ConfigError, DatasetInvalid, DatasetNotFound, output_error
from finetune_trainer.files import describe_file, digest, sync
from finetune_trainer.tracking.holder import check_still_held

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from finetune_trainer.config.run import Run

    Parts = list[tuple[str, Iterable[tuple[int, Any]]]]
    """Files of a split: the name of each in messages, and its rows by line or number."""

log = logging.getLogger(__name__)

COPIES = "copies"
"""Folder of the copies, below the folder of the tokens."""


def copies_of(run: Run, name: str, path: Path, wanted: list[tuple[str, ...]]) -> Path:
    """The folder of the copies. They are made unless this run has them already."""
    try:
        files = _files(run, name, path)
        digests = [(str(file), describe_file(file.parent, file.name).sha256) for file in files]
    except OSError as error:
        raise unreadable(path, name, error) from None
    folder = run.tokens / COPIES
    key = digest(json.dumps([name, run.checkpoint_owner, digests, wanted]).encode())[:32]
    if not (folder / key).is_dir():
        splits = _splits(name, path, files) if path.exists() else _hub_splits(name, path)
        draft = folder / f".{key}-{uuid.uuid4().hex[:8]}.tmp"
        try:
            draft.mkdir(parents=True)
            _write(splits, wanted, draft, name)
            check_still_held(run)
            draft.replace(folder / key)
        except OSError as error:
            raise output_error(run.output_dir, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder / key


def _write(splits: dict[str, Parts], wanted: list[tuple[str, ...]], folder: Path, name: str) -> None:
    for position, choice in enumerate(wanted):
        split = next((split for split in choice if split in splits), None)
        if split is not None:
            _copy(splits[split], folder / f"{split}.jsonl")
        elif position == 0:
            raise DatasetNotFound(f"{name}: the data set has no split {' or '.join(choice)}; it has {', '.join(splits)}")


def _files(run: Run, name: str, path: Path) -> list[Path]:
    """A file, or the data files below a folder; empty: the data is on the hub."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    if path.resolve() == run.output_dir.resolve():
        raise ConfigError([f"General.output_dir: it is the folder of the data, {name}; choose a folder of its own below it"])
    files = data_files(path, run.output_dir)
    if not files:
        there = ", ".join(sorted(part.name for part in path.iterdir())[:5]) or "nothing"
        raise DatasetInvalid(f"{name}: cannot read the data: {path} has no file {', '.join(SUFFIXES)}; it has {there}")
    return files


def _splits(name: str, path: Path, files: list[Path]) -> dict[str, Parts]:
    """The splits of a local file or folder."""
    if path.is_file():
        return {"train": [(name, read_rows(path, name))]}
    splits = splits_of(path, files)
    used = {file for part in splits.values() for file in part}
    left = [str(file.relative_to(path)) for file in files if file not in used]
    if left:
        log.warning("%s: not read, since other files name a split (train, validation, test): %s", name, ", ".join(left))
    names = {file: f"{name.rstrip('/')}/{file.relative_to(path)}" for file in used}
    return {split: [(names[file], read_rows(file, names[file])) for file in part] for split, part in splits.items()}


def _hub_splits(name: str, path: Path) -> dict[str, Parts]:
    """The splits of a data set of the hub.

    Raises:
        DatasetNotFound: it does not exist, or may not be read.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(name)
        # A response such as 007 or NA is text.
        as_text = {"converters": dict.fromkeys(COLUMNS, str), "keep_default_na": False}
        options = as_text if type(builder.config).__name__ == "CsvConfig" else {}
        found = datasets.load_dataset(name, **options)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise _not_on_hub(name, path, error) from error
    return {split: [(f"{name}[{split}]", _numbered(rows, f"{name}[{split}]"))] for split, rows in found.items()}


def _numbered(rows: Iterable[Any], name: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(rows, start=1)
    except Exception as error:
        raise DatasetInvalid(f"{name}: cannot read the data: {_reason(error)}") from error


def _copy(parts: Parts, path: Path) -> None:
    """Write the rows of some files to a JSONL file. A file of which no row has one of our columns is left out.

    Raises:
        DatasetInvalid: rows are broken, or no file has the columns.
    """
    broken, strange, taken = BrokenRows(parts[0][0]), [], 0
    with path.open("w", encoding="utf-8") as file:
        for name, rows in parts:
            reasons, columns = _copy_rows(rows, file, name)
            if columns is None:
                broken.join(reasons)
                taken += 1
            else:
                strange.append((name, columns))
    broken.refuse()
    if strange and not taken:
        name, columns = strange[0]
        needs = "it needs instruction and response (and context, if there is one), or text"
        raise DatasetInvalid(f"{name}: the data has the columns {columns or '(none)'}; {needs}{_hint(columns)}")
    for name, columns in strange:
        log.warning("%s: not read, since it has none of our columns, but %s", name, columns or "none")
    sync(path)


def _copy_rows(rows: Iterable[tuple[int, Any]], file: IO[str], name: str) -> tuple[BrokenRows, str | None]:
    """Copy the rows of one file. Return those that are broken; and, if none has one of our columns, the columns that it has."""
    broken, strange, ours = BrokenRows(name), None, False
    for line, row in rows:
        if isinstance(row, dict):
            near = {str(column).strip().lower() for column in row}
            ours = ours or bool(near & REQUIRED)
            strange = strange or ", ".join(map(str, row))
        ours = ours or isinstance(row, ValueError)
        try:
            check_row(row, line)
        except ValueError as error:
            broken.add([(line, str(error))])
        else:
            json.dump({key: row[key] for key in COLUMNS if row.get(key) is not None}, file)
            file.write("\n")
    return broken, None if ours or (strange is None and not broken.count) else (strange or "")


def _hint(columns: str) -> str:
    if {"chosen", "rejected"} <= set(columns.split(", ")):
        return ". Pairs of chosen and rejected answers are for preference training (DPO), which is not supported"
    return ""


def _not_on_hub(name: str, path: Path, error: Exception) -> DatasetNotFound:
    text = str(error)
    tried = f"{name}: there is no file or folder {path}, and the data set {name} cannot be loaded from the Hugging Face hub"
    if "gated" in text:
        advice = "ask for access on its page, and give your token in HF_TOKEN (spec.model.tokenSecretRef of a FinetuneJob)"
        return DatasetNotFound(f"{tried}: it is gated; {advice}")
    if "doesn't exist" in text:
        return DatasetNotFound(f"{tried}: there is none of this name, or it is private; a private one needs a token in HF_TOKEN")
    return DatasetNotFound(f"{tried}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The first line of the message of the original error; all of one about columns, since it names them and the file."""
    if type(error).__name__ == "DatasetGenerationCastError":
        return " ".join(str(error).split())
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
