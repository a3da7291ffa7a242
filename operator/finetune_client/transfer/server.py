"""What runs in the helper pod: serves the files of a claim over HTTP, to whoever has the token.

It is sent to the pod as text and runs there by itself: nothing but Python's standard library may be imported. All requests
can be repeated: a part of a file is written at an offset, and a file gets its name when its checksum is right.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

IDLE_SECONDS = 600
"""Without a request for this time the pod ends by itself: whoever started it is gone."""
PIECE = 1 << 20
MOST_BYTES = 64 * PIECE
"""Longest part of a file that is asked for, or comes, at once."""
PARTIAL = ".finetune-partial"
"""Ending of the name of a file that is not complete."""


class Refusal(Exception):  # noqa: N818 - an answer
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """The requests; `path` of each is relative to the claim."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    root = Path()
    token_sha256 = ""
    last_request = 0.0
    writing = threading.Lock()

    def do_GET(self) -> None:
        """``/list``: the files below a path; ``/file``: a part of a file; ``/digest``: size and SHA-256 of one."""
        self._answer({"/list": self._list, "/file": self._read, "/digest": self._digest})

    def do_PUT(self) -> None:
        """``/file``: a part of a file that is not complete; ``/name``: it is complete, and gets its name."""
        self._answer({"/file": self._write, "/name": self._name})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server has
        """Say nothing: the pod's log is nobody's."""

    def _answer(self, actions: dict[str, Any]) -> None:
        type(self).last_request = time.monotonic()
        try:
            value, status = self._act(actions), 200
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
        except Refusal as refusal:
            status, body = refusal.status, json.dumps({"error": str(refusal)}).encode()
        except OSError as error:
            self.close_connection = True
            status = 507 if error.errno in {errno.ENOSPC, errno.EDQUOT} else 500
            body = json.dumps({"error": error.strerror or str(error)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self.wfile.write(body)

    def _act(self, actions: dict[str, Any]) -> Any:
        given = self.headers.get("X-Finetune-Token", "")
        if not hmac.compare_digest(hashlib.sha256(given.encode()).hexdigest(), self.token_sha256):
            self.close_connection = True
            raise Refusal(401, "the token is not that of this pod")
        url = urlsplit(self.path)
        if url.path not in actions:
            raise Refusal(404, "there is no such request")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        return actions[url.path](query, int(self.headers.get("Content-Length") or 0))

    def _path(self, query: dict[str, str]) -> Path:
        path = Path(os.path.realpath(self.root / query.get("path", "").lstrip("/")))
        if path != self.root and self.root not in path.parents:
            raise Refusal(403, "the path leaves the claim")
        return path

    def _file(self, query: dict[str, str]) -> Path:
        path = self._path(query)
        if not path.is_file():
            raise Refusal(404, "there is no such file")
        return path

    def _list(self, query: dict[str, str], _length: int) -> Any:
        top = self._path(query)
        files = [path for path in sorted(top.rglob("*")) if path.is_file() and not path.is_symlink()] if top.is_dir() else []
        return {"files": [{"path": str(path.relative_to(top)), "sizeBytes": path.stat().st_size} for path in files[:100_000]]}

    def _read(self, query: dict[str, str], _length: int) -> Any:
        with self._file(query).open("rb") as file:
            file.seek(int(query.get("offset", 0)))
            return file.read(min(int(query.get("length", PIECE)), MOST_BYTES))

    def _digest(self, query: dict[str, str], _length: int) -> Any:
        path = self._path(query)
        partial = path.with_name(path.name + PARTIAL)
        found = {"partialBytes": partial.stat().st_size if partial.is_file() else 0}
        if not path.is_file() or query.get("of") == "partial":
            return found
        return found | {"sizeBytes": path.stat().st_size, "sha256": sha256_of(path)}

    def _write(self, query: dict[str, str], length: int) -> Any:
        path, offset = self._path(query), int(query["offset"])
        data = self.rfile.read(min(length, MOST_BYTES))
        if len(data) < length:
            self.close_connection = True
            raise Refusal(400, "the part was cut off, or is too long")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + PARTIAL)
        with self.writing:
            size = partial.stat().st_size if partial.is_file() else 0
            if offset > size:
                raise Refusal(409, f"the file has {size} bytes so far")
            with partial.open("r+b" if size else "wb") as file:
                file.seek(offset)
                file.truncate()
                file.write(data)
        return {"partialBytes": offset + len(data)}

    def _name(self, query: dict[str, str], _length: int) -> Any:
        path = self._path(query)
        partial = path.with_name(path.name + PARTIAL)
        if not partial.is_file():
            if path.is_file() and sha256_of(path) == query["sha256"]:
                return {"done": True}  # the answer to an earlier request was lost
            raise Refusal(404, "nothing of the file has come")
        if sha256_of(partial) != query["sha256"]:
            partial.unlink()
            raise Refusal(422, "the checksum is wrong: the file has to be sent again")
        partial.replace(path)
        return {"done": True}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _end_when_idle() -> None:
    while time.monotonic() - Handler.last_request < IDLE_SECONDS:
        time.sleep(5)
    os._exit(0)


def main() -> None:
    """Serve a folder on a port, until nobody asks any more."""
    Handler.root = Path(os.path.realpath(sys.argv[1]))
    Handler.token_sha256 = sys.argv[3]
    Handler.last_request = time.monotonic()
    threading.Thread(target=_end_when_idle, daemon=True).start()
    server = ThreadingHTTPServer(("", int(sys.argv[2])), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
