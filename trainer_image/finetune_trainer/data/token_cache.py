"""Tokenised rows on disk, which all ranks map into memory.

    <output_dir>/.tokens/<key>/
        tokens, starts, first, last, lines   the arrays of Examples, as they lie in memory
        complete.json                        written last: how many there are, and their SHA-256

It is written under a temporary name and renamed at the end: a folder with the name of a key is whole. The key is that of
what the rows depend on: the bytes of the data file, the tokenizer, and settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from finetune_trainer.data.jsonl import SHOWN_ROWS
from finetune_trainer.data.prompts import Encoded, Examples
from finetune_trainer.files import digest, sync

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from finetune_trainer.config.schema import Dataset

MARKER = "complete.json"

FORMAT = 1
"""Part of each key. It changes when the same rows and settings become other tokens, or the files others."""

SETTINGS = {"max_length", "max_source_length", "truncation", "truncation_side", "mask_input", "mask_response",
            "data_preprocess_type", "chat_template"}  # fmt: skip
"""Keys of Dataset that the tokens depend on."""

ARRAYS: dict[str, type[np.int32 | np.int64]] = {
    "tokens": np.int32,
    "starts": np.int64,
    "first": np.int64,
    "last": np.int64,
    "lines": np.int64,
}
"""Files of a cache, and the kind of their numbers."""


class Cut(BaseModel):
    """How many rows had to be cut, and which ones come first."""

    model_config = ConfigDict(frozen=True)

    count: int = 0
    lines: tuple[int, ...] = ()

    def plus(self, lines: tuple[int, ...]) -> Cut:
        """With further lines."""
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

    def size(self, array: str) -> int:
        """Bytes of a file."""
        count = {"tokens": self.tokens, "starts": self.rows + 1}.get(array, self.rows)
        return count * ARRAYS[array]().itemsize


def key_of(path: Path, tokenizer: Any, config: Dataset) -> str:
    """What the tokens of a data file depend on, as SHA-256 in hex.

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


class Draft:
    """A cache that is being written, piece by piece; a context manager that leaves nothing half done."""

    def __init__(self, folder: Path, key: str) -> None:
        self._final = folder / key
        # Never the same twice: a rank that Ray has given up may still be writing.
        self._draft = folder / f".{key[:16]}-{uuid.uuid4().hex[:8]}.tmp"
        self._files = ExitStack()
        self._digests = {name: hashlib.sha256() for name in ARRAYS}
        self.contents = Contents(rows=0, tokens=0, highest=-1, sha256={})

    def __enter__(self) -> Self:
        self._draft.mkdir(parents=True)
        self._out = {name: self._files.enter_context((self._draft / name).open("wb")) for name in ARRAYS}
        self._write("starts", np.zeros(1, dtype=np.int64))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._files.close()
        shutil.rmtree(self._draft, ignore_errors=True)

    def add(self, encoded: Encoded) -> None:
        """Write the rows of a piece behind those before.

        Raises:
            OSError: the volume is full or not writable.
        """
        examples, before = encoded.examples, self.contents
        self._write("starts", examples.starts[1:] + before.tokens)
        for name in ("tokens", "first", "last", "lines"):
            self._write(name, getattr(examples, name))
        self.contents = Contents(
            rows=before.rows + len(examples),
            tokens=before.tokens + len(examples.tokens),
            highest=max(before.highest, examples.highest),
            sha256={},
            cut_prompts=before.cut_prompts.plus(encoded.cut_prompts),
            cut_responses=before.cut_responses.plus(encoded.cut_responses),
        )

    def _write(self, name: str, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, dtype=ARRAYS[name]).tobytes()
        self._digests[name].update(data)
        self._out[name].write(data)

    def complete(self) -> None:
        """Bring everything to the disk, and give the cache its name.

        Raises:
            OSError: the volume is full or not writable.
        """
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        self.contents = self.contents.model_copy(update={"sha256": digests})
        for file in self._out.values():
            file.flush()
            os.fsync(file.fileno())
        marker = self._draft / MARKER
        marker.write_text(json.dumps(self.contents.model_dump(mode="json", by_alias=True)) + "\n", encoding="utf-8")
        sync(marker)
        # What is there already is broken: else it would have been used.
        shutil.rmtree(self._final, ignore_errors=True)
        self._draft.replace(self._final)


def find(folder: Path, key: str) -> Contents | None:
    """What a cache holds, if it is there and what was written."""
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
    return Examples(**arrays, name=name, highest=contents.highest, digest=whole)
