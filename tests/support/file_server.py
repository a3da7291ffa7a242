"""An HTTP server for files that behaves as badly as it is told to: it cuts connections, lies and changes its mind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.serving import in_a_thread


@dataclass
class Answer:
    """What a server says in place of the file."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Request:
    """What a client has asked for."""

    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path. A test changes what it does while it runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer | None] = lambda _: None
        """Asked first; None: serve the file."""
        self.cuts: list[int] = []
        """After how many bytes of a body each of the next connections breaks."""
        self.headers: dict[str, str] = {}
        """In place of the server's own; an empty value leaves one out."""
        self.ranges = True
        """Whether it knows Range."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self) -> list[Request]:
        """The requests but for those of one byte, which only look."""
        return [request for request in self.requests if request.range != "bytes=0-0"]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go are part of the tests."""


@contextmanager
def serving_files(**files: bytes) -> Iterator[FileServer]:
    """Serve on a free port of loopback."""
    server = FileServer()
    server.files = {f"/{name}": data for name, data in files.items()}
    with in_a_thread(server):
        yield server


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()})
        self.server.requests.append(request)
        answer = self.server.answer(request)
        data = self.server.files.get(self.path.partition("?")[0])
        if answer is None and data is None:
            answer = Answer(404)
        if answer is not None:
            self._send(answer.status, answer.headers, answer.body)
        elif data is not None:
            self._file(request, data)

    def _file(self, request: Request, data: bytes) -> None:
        etag = f'"{hashlib.md5(data).hexdigest()}"'
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range) if self.server.ranges else None
        if found is None or request.headers.get("if-range", etag) != etag:
            self._send(200, {"ETag": etag, **self.server.headers}, data)
            return
        start, end = int(found[1]), int(found[2] or len(data) - 1)
        if start >= len(data):
            self._send(416, {"Content-Range": f"bytes */{len(data)}", "ETag": etag}, b"")
            return
        part = data[start : end + 1]
        place = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self._send(206, {"ETag": etag, "Content-Range": place, **self.server.headers}, part)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if len(body) > 1 and self.server.cuts:
            body = body[: self.server.cuts.pop(0)]
            self.close_connection = True
        elif "Content-Length" in headers and headers["Content-Length"] != str(len(body)):
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass
