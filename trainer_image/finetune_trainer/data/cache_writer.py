"""Write a cache of tokenised rows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from finetune_trainer.data.token_cache import ARRAYS, MARKER, Contents
from finetune_trainer.files import sync

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from finetune_trainer.data.examples import Encoded


class CacheWriter:
    """Writes a cache piece by piece; a context manager that removes an incomplete cache."""

    def __init__(self, folder: Path, key: str) -> None:
        self._final = folder / key
        # The name is unique: a worker that Ray considers lost may still be writing.
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
        """Append the rows of a piece.

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
            asked=before.asked or examples.asked,
        )

    def _write(self, name: str, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values, dtype=ARRAYS[name]).tobytes()
        self._digests[name].update(data)
        self._out[name].write(data)

    def complete(self) -> None:
        """Sync all files to the disk, and rename the folder: the cache is complete now.

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
        # An existing cache is broken: otherwise it would have been used.
        shutil.rmtree(self._final, ignore_errors=True)
        self._draft.replace(self._final)
