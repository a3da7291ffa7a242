"""What runs in the helper pod: serves the files of a claim over HTTP, to whoever has the token.

It is sent to the pod as text and runs there by itself: nothing but the standard library of Python 3.8 may be used. All requests
can be repeated: a part of a file is written at an offset, and a file gets its name when its checksum is right. A checksum that
takes its time is answered by 202 and how far it is; whoever wants it asks again.

What comes of NAME lies in the folder NAME.finetune-partial until it is complete, in a file for each content and each writer:
nobody writes to a file of another pod, or cuts it.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import re
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

IDLE_SECONDS = 600
"""Without a request for this time the pod ends by itself: whoever started it is gone."""
PIECE = 1 << 20
MOST_BYTES = 64 * PIECE
"""Longest part of a file that is asked for, or comes, at once."""
MOST_HOLD_SECONDS = 15.0
"""Longest time for which an answer waits for a checksum."""
PARTIAL = ".finetune-partial"
"""Ending of the name of a file that is not complete, and of the folder in which it lies."""
OF_A_WRITER = re.compile("([0-9a-f]{64})[.]([0-9a-f]{8})" + re.escape(PARTIAL))
"""Name of a file in such a folder: the SHA-256 of what it will be, and who writes it."""


class Answer(Exception):  # noqa: N818 - no error
    """An answer other than 200."""

    def __init__(self, status: int, **body: Any) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Refusal(Answer):
    """An answer that says why something is not done."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, error=message)


class Hashing:
    """The SHA-256 of a file in one state, found out by a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = state_of(path)
        self.hashed = 0
        """How many bytes are hashed."""
        self.sha256 = ""
        """The result; empty where there is none."""
        self.ended = threading.Event()
        self.given_up = False
        """Nobody wants the result any more."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            found = hashlib.sha256()
            with self.path.open("rb") as file:
                while not self.given_up:
                    piece = file.read(PIECE)
                    if not piece:
                        break
                    found.update(piece)
                    self.hashed += len(piece)
            if state_of(self.path) == self.state:
                self.sha256 = found.hexdigest()
        except OSError:
            pass  # whoever asks next begins again, and is told
        finally:
            self.ended.set()


class Hashes:
    """The checksums of files. One thread at most hashes a file, however often it is asked for; a state is hashed once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of = {}  # type: dict[Path, Hashing]

    def ask(self, path: Path, hold: float) -> Hashing:
        """What is known of a file as it is now, after a pause until its checksum is known."""
        with self._lock:
            found = self._of.get(path)
            state = state_of(path)
            if found is None or found.state != state or (found.ended.is_set() and not found.sha256):
                if found is not None:
                    found.given_up = True
                found = self._of[path] = Hashing(path)
        found.ended.wait(max(0.0, min(hold, MOST_HOLD_SECONDS)))
        return found

    def is_known(self, path: Path, sha256: str) -> bool:
        """Whether a file, as it is now, has a checksum."""
        with self._lock:
            found = self._of.get(path)
            return found is not None and found.sha256 == sha256 and found.state == state_of(path)

    def forget(self, path: Path) -> None:
        """A file is written to, or is gone."""
        with self._lock:
            found = self._of.pop(path, None)
            if found is not None:
                found.given_up = True

    def rename(self, old: Path, new: Path) -> None:
        """A file has another name: its checksum is known by that one."""
        with self._lock:
            found = self._of.pop(old, None)
            if found is not None:
                self._of[new] = found


class Handler(BaseHTTPRequestHandler):
    """The requests; `path` of each is relative to the claim."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    root = Path()
    token_sha256 = ""
    writer = ""
    """Names this pod in the names of the files that it writes."""
    last_request = 0.0
    writing = threading.Lock()
    hashes = Hashes()

    def do_GET(self) -> None:
        """``/list``: the files below a path; ``/file``: a part of a file; ``/digest``: its SHA-256, and what is not complete.

        ``/alive`` only says that somebody is there.
        """
        self._answer({"/alive": self._alive, "/list": self._list, "/file": self._read, "/digest": self._digest})

    def do_PUT(self) -> None:
        """``/begin``: begin a file, or take it up; ``/file``: a part of it; ``/name``: it is complete, and gets its name.

        ``/drop`` deletes what another pod has left of a file.
        """
        self._answer({"/begin": self._begin, "/file": self._write, "/name": self._name, "/drop": self._drop})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server has
        """Say nothing: the pod's log is nobody's."""

    def _answer(self, actions: dict[str, Any]) -> None:
        type(self).last_request = time.monotonic()
        try:
            value, status = self._act(actions), 200
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
        except Answer as answer:
            status, body = answer.status, json.dumps(answer.body).encode()
        except (KeyError, ValueError) as error:
            self.close_connection = True
            status, body = 400, json.dumps({"error": f"the request is not understood: {error}"}).encode()
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
        path = Path(os.path.realpath(str(self.root / query.get("path", "").lstrip("/"))))
        if path != self.root and self.root not in path.parents:
            raise Refusal(403, "the path leaves the claim")
        return path

    def _partial(self, query: dict[str, str], writer: str) -> Path:
        """Where a writer puts what comes of a file."""
        path, sha256 = self._path(query), query["sha256"]
        name = f"{sha256}.{writer}{PARTIAL}"
        if not OF_A_WRITER.fullmatch(name):
            raise Refusal(400, "that is no checksum, or no writer")
        return path.with_name(path.name + PARTIAL) / name

    def _file(self, query: dict[str, str]) -> Path:
        path = self._path(query)
        if not path.is_file():
            raise Refusal(404, "there is no such file")
        return path

    def _sha256(self, path: Path, query: dict[str, str]) -> str:
        """The SHA-256 of a file; an answer that it takes its time where it is not known yet."""
        found = self.hashes.ask(path, float(query.get("hold", 0)))
        if not found.sha256:
            raise Answer(202, pending=True, hashedBytes=found.hashed, sizeBytes=found.state[0])
        return found.sha256

    def _alive(self, _query: dict[str, str], _length: int) -> Any:
        return {}

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
        found = {"partials": partials_of(path)}  # type: dict[str, Any]
        if path.is_file():
            found["sizeBytes"] = path.stat().st_size
            if query.get("size") in {None, str(found["sizeBytes"])}:  # a file of another size is another one
                found["sha256"] = self._sha256(path, query)
        return found

    def _begin(self, query: dict[str, str], _length: int) -> Any:
        own = self._partial(query, self.writer)
        with self.writing:
            if own.parent.is_file():  # as earlier versions have left it
                own.parent.unlink()
            own.parent.mkdir(parents=True, exist_ok=True)
            if query.get("take") and not own.exists():
                with suppress(FileNotFoundError):  # another one was faster
                    self._partial(query, query["take"]).replace(own)
            own.touch()
            return {"partialBytes": own.stat().st_size}

    def _write(self, query: dict[str, str], length: int) -> Any:
        partial, offset = self._partial(query, self.writer), int(query["offset"])
        data = self.rfile.read(min(length, MOST_BYTES))
        if len(data) < length:
            self.close_connection = True
            raise Refusal(400, "the part was cut off, or is too long")
        with self.writing:
            size = partial.stat().st_size if partial.is_file() else -1
            if offset > size:
                raise Refusal(409, f"the file has {max(size, 0)} bytes so far")
            self.hashes.forget(partial)
            with partial.open("r+b") as file:  # and nothing is cut: this may be a request that was overtaken by later ones
                file.seek(offset)
                file.write(data)
        return {"partialBytes": offset + len(data)}

    def _name(self, query: dict[str, str], _length: int) -> Any:
        path, partial = self._path(query), self._partial(query, self.writer)
        if not partial.is_file():
            if path.is_file() and self._sha256(path, query) == query["sha256"]:
                return {"done": True}  # the answer to an earlier request was lost
            raise Refusal(409, "nothing of the file has come, or another command has taken it up")
        show_life(partial)
        sha256 = self._sha256(partial, query)
        with self.writing:
            if sha256 != query["sha256"]:
                remove(partial)
                raise Refusal(422, "the checksum is wrong: the file has to be sent again")
            if not self.hashes.is_known(partial, sha256):
                raise Answer(202, pending=True, hashedBytes=0, sizeBytes=0)
            partial.replace(path)
            self.hashes.rename(partial, path)
            remove_folder(partial.parent)
        return {"done": True}

    def _drop(self, query: dict[str, str], _length: int) -> Any:
        remove(self._partial(query, query["writer"]))
        return {"done": True}


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def partials_of(path: Path) -> list[dict[str, Any]]:
    """What is there of a file by those who have not completed it; and for how long each has shown no life."""
    found = []
    folder = path.with_name(path.name + PARTIAL)
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = OF_A_WRITER.fullmatch(entry.name)
        if match:
            try:
                stat = entry.stat()
            except FileNotFoundError:
                continue  # it is complete by now
            quiet = max(0.0, time.time() - max(stat.st_atime, stat.st_mtime))
            found.append({"sha256": match[1], "writer": match[2], "sizeBytes": stat.st_size, "quietSeconds": quiet})
    return found


def show_life(partial: Path) -> None:
    """Let others see by the time of access that somebody is at a file which is not written to now."""
    with suppress(PermissionError):  # there are claims on which all files are another user's
        os.utime(str(partial), ns=(time.time_ns(), partial.stat().st_mtime_ns))


def remove(partial: Path) -> None:
    """Delete what has come of a file, if it is there, and the folder if it was the last."""
    Handler.hashes.forget(partial)
    with suppress(FileNotFoundError):
        partial.unlink()
    remove_folder(partial.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder if it is empty."""
    with suppress(OSError):  # others write to it
        folder.rmdir()


def _end_when_idle() -> None:
    while time.monotonic() - Handler.last_request < IDLE_SECONDS:
        time.sleep(5)
    os._exit(0)


def main() -> None:
    """Serve a folder on a port, until nobody asks any more."""
    Handler.root = Path(os.path.realpath(sys.argv[1]))
    Handler.token_sha256, Handler.writer = sys.argv[3:5]
    Handler.last_request = time.monotonic()
    threading.Thread(target=_end_when_idle, daemon=True).start()
    server = ThreadingHTTPServer(("", int(sys.argv[2])), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
