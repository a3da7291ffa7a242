"""A thread that polls."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Poller(ABC):
    """A context manager that polls in a thread of its own while its block runs, and a last time when the block has ended."""

    def __init__(self, name: str, seconds: float) -> None:
        """Prepare the thread.

        Args:
            name: name of the thread.
            seconds: time between two polls.
        """
        self._seconds = seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._seconds):
            self.poll()
        self.poll()

    @abstractmethod
    def poll(self) -> None:
        """Look once."""
