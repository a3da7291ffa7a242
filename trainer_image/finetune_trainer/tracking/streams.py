"""Standard streams that cannot fail a run: a closed pipe, a full disk behind `>`, a terminal that knows ASCII only."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

UNWRITABLE = (OSError, ValueError)
"""What a stream raises that cannot be written to: a ValueError says that it is closed."""


class Unfailing:
    """A standard stream that drops what cannot be written; it goes on when there is space again."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text if that is possible."""
        with suppress(*UNWRITABLE):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if that is possible."""
        with suppress(*UNWRITABLE):
            self._stream.flush()


@contextmanager
def unfailing() -> Iterator[None]:
    """Make the standard streams unfailing during the block, and keep them from failing the exit of the process after it."""
    for number in range(3):
        _open_if_closed(number)
    before = sys.stdout, sys.stderr
    streams = [stream or open(os.devnull, "w", encoding="utf-8") for stream in before]  # noqa: SIM115 - until the process ends
    for stream in streams:
        with suppress(AttributeError, *UNWRITABLE):
            cast("Any", stream).reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast("TextIO", Unfailing(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            _give_up_unwritten(stream)


def _open_if_closed(number: int) -> None:
    """Open the null device in the place of a closed standard stream: otherwise the next file would take its number."""
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _give_up_unwritten(stream: TextIO) -> None:
    """Drop what is still unwritten: Python flushes the streams when it exits, and an error then changes the exit code."""
    try:
        stream.flush()
    except UNWRITABLE:
        with suppress(*UNWRITABLE):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
