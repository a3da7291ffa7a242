"""JSONL copies of data in other forms: CSV and Parquet files, folders, and data sets of the hub."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.jsonl import unreadable
from finetune_trainer.errors import DatasetInvalid, DatasetNotFound, output_error
from finetune_trainer.files import describe_file, digest, sync

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from finetune_trainer.config.run import Run


COPIES = "copies"
"""Folder of the copies, below the folder of the tokens."""


KEYS = ("instruction", "context", "response", "text")
"""Columns that are read."""


TABLES = {".csv": "csv", ".parquet": "parquet"}
"""Suffixes of data files that are not read line by line → their kind in the library `datasets`."""


def copies_of(run: Run, name: str, path: Path, wanted: list[tuple[str, ...]]) -> Path:
    """The folder of the copies. They are made unless this run has them already."""
    try:
        files = [(str(file), describe_file(path.parent, str(file)).sha256) for file in files_below(path)]
    except OSError as error:
        raise unreadable(path, name, error) from None
    folder = run.tokens / COPIES
    key = digest(json.dumps([name, run.checkpoint_owner, files, wanted]).encode())[:32]
    if not (folder / key).is_dir():
        splits = _load(name, path)
        draft = folder / f".{key}-{uuid.uuid4().hex[:8]}.tmp"
        try:
            draft.mkdir(parents=True)
            _write(splits, wanted, draft, name)
            draft.replace(folder / key)
        except OSError as error:
            raise output_error(run.output_dir, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder / key


def _write(splits: dict[str, Any], wanted: list[tuple[str, ...]], folder: Path, name: str) -> None:
    for position, choice in enumerate(wanted):
        split = next((split for split in choice if split in splits), None)
        if split is not None:
            _copy(splits[split], folder / f"{split}.jsonl", name)
        elif position == 0:
            raise DatasetNotFound(f"{name}: the data set has no split {' or '.join(choice)}; it has {', '.join(splits)}")


def files_below(path: Path) -> list[Path]:
    """A file, or all files below a folder except hidden ones, relative to the parent folder; empty: the data is on the hub."""
    files = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    below = [path.name / file for file in files if not any(part.startswith(".") for part in file.parts)]
    return [Path(path.name)] if path.is_file() else below


def _load(name: str, path: Path) -> dict[str, Any]:
    """The splits of a local file or folder, or of a data set of the hub, as iterables of rows.

    Raises:
        DatasetNotFound: it does not exist, or may not be read.
        DatasetInvalid: it cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    kind = TABLES.get(path.suffix.lower())
    try:
        if path.is_file() and kind:
            return dict(datasets.load_dataset(kind, data_files={"train": str(path)}, streaming=True, **_as_text(path)))
        if path.is_dir():
            return dict(datasets.load_dataset(str(path), streaming=True, **_as_text(path)))
        return dict(datasets.load_dataset(name))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        if path.exists():
            raise DatasetInvalid(f"{name}: cannot read the data in {path}: {_reason(error)}") from error
        raise _not_on_hub(name, path, error) from error


def _as_text(path: Path) -> dict[str, Any]:
    """Options for CSV files: a response such as 007 or NA is text."""
    there = any(file.suffix.lower() == ".csv" for file in files_below(path))
    return {"converters": dict.fromkeys(KEYS, str), "keep_default_na": False} if there else {}


def _copy(rows: Iterable[dict[str, Any]], path: Path, name: str) -> None:
    """Write rows to a JSONL file.

    Raises:
        DatasetInvalid: they cannot be read, or they lack the columns.
    """
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(_read(rows, name)):
            if not number and "text" not in row and not {"instruction", "response"} <= row.keys():
                needs = "it needs instruction and response (and context, if there is one), or text"
                raise DatasetInvalid(f"{name}: the data has the columns {', '.join(row)}; {needs}")
            json.dump({key: row[key] for key in KEYS if row.get(key) is not None}, file, default=str)
            file.write("\n")
    sync(path)


def _read(rows: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except Exception as error:
        raise DatasetInvalid(f"{name}: cannot read the data: {_reason(error)}") from error


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
    """The first line of the message of the original error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
