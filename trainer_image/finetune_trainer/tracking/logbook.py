"""Keep the whole log of an attempt on the output volume, for the time after the pods are deleted.

    <output_dir>/logs/attempt-<n>/driver.log     what the command prints
    <output_dir>/logs/attempt-<n>/rank-<r>.log   what a rank prints and logs, and the traceback of the error that ends it

Each line is written at once, so that a kill loses nothing that was printed. Secrets are redacted, here and on the standard
streams. A run does not fail if its log cannot be written.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any, TextIO, cast

from finetune_trainer.redaction import redact
from finetune_trainer.tracking import console

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAX_BYTES = 25 * 2**20
"""Size at which a log is renamed to `<name>.1`, which replaces an older one: both together never exceed 50 MiB."""


class Log(RotatingFileHandler):
    """A file of limited size, of lines with their times."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=1, delay=True, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def note(self, lines: Iterable[str]) -> None:
        """Write lines; ignore an error."""
        for line in lines:
            self.handle(logging.makeLogRecord({"msg": redact(line)}))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - Python's name
        """Ignore the error: the volume may be full."""

    def close(self) -> None:
        """Close the file; what could not be written is lost."""
        with suppress(OSError):
            super().close()


class Tee:
    """A standard stream whose output also goes to a log."""

    def __init__(self, stream: TextIO, log: Log) -> None:
        self._stream = stream
        self._log: Log | None = log
        self._rest = ""
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text to the stream, and its complete lines to the log."""
        self._stream.write(redact(text))
        with self._lock:
            if self._log is not None:
                *lines, rest = (self._rest + text).split("\n")
                self._rest = _last_drawn(rest)
                self._log.note(map(_last_drawn, lines))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def detach(self) -> None:
        """Stop logging: a library may keep this stream until the process ends."""
        with self._lock:
            if self._log is not None and self._rest:
                self._log.note([self._rest])
            self._log = None


def _last_drawn(line: str) -> str:
    """The last state of a line that is redrawn, such as a progress bar."""
    return line.rstrip("\r").rpartition("\r")[2]


@contextmanager
def keep(logs: Path, attempt: int, name: str) -> Iterator[None]:
    """Keep in a log file what this process prints and logs.

    Args:
        logs: the folder `logs` of the output folder.
        attempt: which attempt at the run this is.
        name: whose log: `driver`, or `rank-<r>`.
    """
    path = logs / f"attempt-{attempt}" / f"{name}.log"
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    log = Log(path)
    before = sys.stdout, sys.stderr
    out, err = Tee(sys.stdout, log), Tee(sys.stderr, log)
    sys.stdout, sys.stderr = cast("TextIO", out), cast("TextIO", err)
    console.set_up_logging()
    try:
        yield
    except Exception:
        # The caller prints only a message; the log has the whole traceback.
        log.note(traceback.format_exc().splitlines())
        raise
    finally:
        sys.stdout, sys.stderr = before
        console.set_up_logging()
        out.detach()
        err.detach()
        log.close()
