"""A disk for checkpoints that writes when it is let."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from finetune_trainer.files import write_described

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from finetune_trainer.files import Entry

PATIENCE = 60.0
"""Seconds until a disk that nobody lets write gives up."""


class Disk:
    """Its `write` is that of a Checkpointer. It refuses to write two checkpoints at a time."""

    def __init__(self, failure: OSError | None = None) -> None:
        """Prepare a disk that does not write yet.

        Args:
            failure: raised in the place of writing.
        """
        self.failure = failure
        self._may_write = threading.Event()
        self._one = threading.Lock()

    def let(self) -> None:
        """Let it write from now on."""
        self._may_write.set()

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> Entry:
        """Write a file when it is let."""
        assert self._one.acquire(blocking=False), "two files are written at a time"
        try:
            assert self._may_write.wait(PATIENCE), "training waits for the disk"
            if self.failure is not None:
                raise self.failure
            return write_described(path, parts)
        finally:
            self._one.release()
