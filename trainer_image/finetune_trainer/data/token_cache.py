"""Tokenised rows on disk, which all ranks map into memory.

    <output_dir>/.tokens/<key>/
        tokens, starts, first, last, lines   the arrays of Examples, as they lie in memory
        complete.json                        written last: how many there are, and their SHA-256

A cache is written under a temporary name and renamed at the end: a folder with the name of a key is complete. The key is
a digest of what the tokens depend on: the bytes of the data file, the tokenizer, and settings.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.data.examples import Examples
from finetune_trainer.data.jsonl import SHOWN_ROWS
from finetune_trainer.files import digest

if TYPE_CHECKING:
    from finetune_trainer.config.dataset import Dataset

MARKER = "complete.json"

FORMAT = 2
"""Part of each key. Change it when the same rows and settings give other tokens, or when the files change."""

SETTINGS = {"max_length", "max_source_length", "truncation", "truncation_side", "mask_input", "mask_response",
            "data_preprocess_type", "chat_template", "block_size", "bos"}  # fmt: skip
"""Keys of Dataset that the tokens depend on."""

ARRAYS: dict[str, type[np.int32 | np.int64]] = {
    "tokens": np.int32,
    "starts": np.int64,
    "first": np.int64,
    "last": np.int64,
    "lines": np.int64,
}
"""Files of a cache → the type of their numbers."""


class Cut(BaseModel):
    """How many rows were cut, and the lines of the first ones."""

    model_config = ConfigDict(frozen=True)

    count: int = 0
    lines: tuple[int, ...] = ()

    def plus(self, lines: tuple[int, ...]) -> Cut:
        """The same with further lines."""
        return Cut(count=self.count + len(lines), lines=(self.lines + lines)[:SHOWN_ROWS])


class Contents(BaseModel):
    """The file complete.json."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    version: Literal[1] = 1
    rows: int
    tokens: int
    highest: int
    """The highest token id."""
    sha256: dict[str, str]
    """Of each file, in hex."""
    cut_prompts: Cut = Cut()
    cut_responses: Cut = Cut()
    asked: tuple[str, str] | None = None
    """As in `Examples`."""

    def size(self, array: str) -> int:
        """Bytes of a file."""
        count = {"tokens": self.tokens, "starts": self.rows + 1}.get(array, self.rows)
        return count * ARRAYS[array]().itemsize


def key_of(path: Path, tokenizer: Any, config: Dataset) -> str:
    """SHA-256, in hex, of all that the tokens of a data file depend on.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        contents = hashlib.file_digest(file, "sha256").digest()
    settings = config.model_dump(mode="json", include=SETTINGS)
    return digest(bytes([FORMAT]), contents, _serialised(tokenizer), json.dumps(settings, sort_keys=True).encode())


def _serialised(tokenizer: Any) -> bytes:
    """Digest of all files that the tokenizer consists of."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest(*(part for path in files for part in (path.name.encode(), path.read_bytes()))).encode()


def find(folder: Path, key: str) -> Contents | None:
    """The contents of a cache, if it exists and is intact."""
    path = folder / key
    try:
        contents = Contents.model_validate_json((path / MARKER).read_bytes())
        for name, digest in contents.sha256.items():
            with (path / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return None
        whole = all((path / name).stat().st_size == contents.size(name) for name in ARRAYS)
    except (OSError, ValidationError):
        return None
    return contents if whole and set(contents.sha256) == set(ARRAYS) else None


def open_cache(folder: Path, key: str, name: str) -> Examples:
    """Map the rows of a cache into memory.

    Args:
        folder: the folder of all caches.
        key: of this one.
        name: the data file as the user wrote it.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / key
    contents = Contents.model_validate_json((path / MARKER).read_bytes())
    arrays: dict[str, Any] = {array: np.memmap(path / array, dtype=kind, mode="r") for array, kind in ARRAYS.items()}
    whole = digest(*(contents.sha256[array].encode() for array in ARRAYS if array != "lines"))
    return Examples(**arrays, name=name, highest=contents.highest, digest=whole, asked=contents.asked)
