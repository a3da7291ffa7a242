"""A stand-in for the Hugging Face hub with one data set, as far as the library `datasets` asks for it."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.support.serving import in_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves the files of one data set; of a gated one only to who shows the token."""

    def __init__(self, name: str, files: dict[str, bytes], token: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.files, self.token = name, files, token

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(name: str, files: dict[str, bytes], token: str | None = None) -> Iterator[FakeHub]:
    """Serve a data set on a free port of loopback."""
    hub = FakeHub(name, files, token)
    with in_a_thread(hub):
        yield hub


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, asked: bytes = b"") -> None:
        hub, path = self.server, self.path.partition("?")[0]
        siblings = [{"rfilename": name, "size": len(data), "blobId": _blob(data)} for name, data in hub.files.items()]
        repository = f"/datasets/{hub.name}"
        if not path.removeprefix("/api").startswith(repository):
            self._refuse(404, "RepoNotFound")
        elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401, "GatedRepo")
        elif path.startswith(f"{repository}/resolve/"):
            self._file(path.split("/resolve/")[1].partition("/")[2])
        elif "/tree/" in path:
            self._send(json.dumps([_describe(name, data) for name, data in hub.files.items()]).encode())
        elif "/paths-info/" in path:
            self._send(json.dumps([_describe(name, data) for name, data in hub.files.items() if name in asked.decode()]).encode())
        else:
            self._send(json.dumps({"id": hub.name, "sha": COMMIT, "private": False, "siblings": siblings}).encode())

    def _file(self, name: str) -> None:
        if name in self.server.files:
            self._send(self.server.files[name])
        else:
            self._refuse(404, "EntryNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self._send(b"{}", status, {"X-Error-Code": code})

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        etag = hashlib.sha1(data).hexdigest()
        for name, value in {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{etag}"',
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


def _blob(data: bytes) -> str:
    """Git's digest of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _describe(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
