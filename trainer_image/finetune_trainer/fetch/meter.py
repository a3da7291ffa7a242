"""How far a fetch is: for the operator over HTTP, and for people in the log."""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finetune_trainer.fetch.report import FetchProgress

LOG_SECONDS = 10.0
"""How often a line is written."""


class Meter:
    """Bytes by file; whoever reads them may be another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._sizes: dict[str, int | None] = {}
        self._told = 0.0

    def expect(self, name: str, size: int | None) -> None:
        """A file is to be fetched."""
        with self._lock:
            self._sizes[name] = size
            self._done.setdefault(name, 0)

    def at(self, name: str, done: int) -> None:
        """So much of a file is there."""
        with self._lock:
            self._done[name] = done
        if time.monotonic() - self._told > LOG_SECONDS:
            self._told = time.monotonic()
            self.tell(name)

    def tell(self, words: str) -> None:
        """Write a line."""
        now = self.progress()
        total = "" if now.total_bytes is None else f" of {now.total_bytes:,}"
        sys.stdout.write(f"{words}: {now.bytes:,}{total} bytes\n")
        sys.stdout.flush()

    def progress(self) -> FetchProgress:
        """All files together."""
        with self._lock:
            done, sizes = sum(self._done.values()), list(self._sizes.values())
        known = [size for size in sizes if size is not None]
        return FetchProgress(bytes=done, total_bytes=sum(known) if sizes and len(known) == len(sizes) else None)


def serve(meter: Meter, port: int) -> ThreadingHTTPServer:
    """Answer every GET with the progress, which is no secret; in a thread that ends with the process."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = meter.progress().model_dump_json(by_alias=True, exclude_none=True).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing: the log is for the fetch."""

    server = ThreadingHTTPServer(("", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
