"""A stand-in for a store with the API of S3 that has one bucket, for those who sign with the key that it knows."""

from __future__ import annotations

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.serving import in_a_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 2
"""Objects that a list has at once."""


class FakeS3(ThreadingHTTPServer):
    """The store; who signs is told by the scope of the signature, which is not checked itself."""

    def __init__(self, bucket: str, files: dict[str, bytes], key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bucket, self.files, self.key = bucket, files, key

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(bucket: str, files: dict[str, bytes], key: str) -> Iterator[FakeS3]:
    """Serve a bucket on a free port of loopback."""
    store = FakeS3(bucket, files, key)
    with in_a_thread(store):
        yield store


def _etag(body: bytes) -> str:
    return f'"{len(body)}"'


class _Handler(BaseHTTPRequestHandler):
    server: FakeS3
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        store, url = self.server, urlsplit(self.path)
        bucket, _, name = unquote(url.path).removeprefix("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if f"Credential={store.key}/" not in self.headers.get("Authorization", ""):
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif bucket == store.bucket and query.get("list-type") == "2":
            self._send(200, self._list(query["prefix"], query.get("continuation-token", "")))
        elif bucket == store.bucket and name in store.files:
            self._send(200, store.files[name])
        else:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _list(self, prefix: str, after: str) -> bytes:
        names = [name for name in sorted(self.server.files) if name.startswith(prefix) and name > after]
        items = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(body)}</Size><ETag>{_etag(body)}</ETag></Contents>"
            for name, body in ((name, self.server.files[name]) for name in names[:PAGE])
        )
        more = f"<NextContinuationToken>{names[PAGE - 1]}</NextContinuationToken>" if len(names) > PAGE else ""
        return f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{items}{more}</ListBucketResult>'.encode()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", _etag(body))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
