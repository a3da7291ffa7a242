"""The Ray dashboard of a job on this machine: a loopback proxy, through the API server, that adds the job's token.

Whoever reaches the proxy acts as the user, and the pages come from a cluster that may be less trusted than the user. So it
takes requests with the key of its address only, from no other page, and for nothing but the dashboard.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from finetune_client.driver_log import Dashboard
from finetune_client.errors import ClientError

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from finetune_client.access import Access

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""Names of this machine that a request may be for: a page of another name that leads here is not the user's."""
ASKED = ("Accept", "Accept-Encoding", "Content-Type", "If-Modified-Since", "If-None-Match", "Range")
"""Headers of a request that are passed on."""
ANSWERED = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type", "ETag",
            "Last-Modified", "Vary")  # fmt: skip
"""Headers of an answer that are passed on, as they are."""
MOST_BYTES = 64 << 20
"""Longest body of a request."""
PIECE = 1 << 16


class Refusal(Exception):  # noqa: N818 - an answer
    """The proxy does not pass a request on."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class _BrowserGoneError(Exception):
    """Nobody reads the answer any more; no fault of the API server's."""


@dataclass(frozen=True)
class Proxy:
    """What is passed on, and to where."""

    client: Access
    dashboard: Dashboard
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def server(self, port: int = 0) -> ThreadingHTTPServer:
        """A server on a port of this machine; 0: a free one."""
        server = ThreadingHTTPServer((HOST, port), type("Handler", (_Handler,), {"proxy": self}))
        server.daemon_threads = True
        return server

    def address(self, server: ThreadingHTTPServer) -> str:
        """What is opened in a browser: the key becomes a cookie."""
        return f"http://{HOST}:{server.server_address[1]}/?key={self.key}"


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    proxy: Proxy
    begun = False
    """Whether the answer has begun: then it can only be cut off."""

    def do_GET(self) -> None:
        """Pass it on."""
        self.begun = False
        try:
            if not self._logs_in():
                self._check()
                self._pass_on()
        except Refusal as refusal:
            self._say(refusal.status, str(refusal))
        except ClientError as error:
            self.close_connection = True
            self._say(502, f"{error.message}\n{error.hint}")
        except (_BrowserGoneError, OSError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that http.server has

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server has
        """Say nothing: addresses have the key."""

    @property
    def _port(self) -> int:
        return int(self.connection.getsockname()[1])

    @property
    def _cookie(self) -> str:
        return f"finetune-dashboard-{self._port}"

    def _logs_in(self) -> bool:
        """Turn the key of the address into a cookie; say whether there was one."""
        self._check_host()
        url = urlsplit(self.path)
        given = parse_qs(url.query).get("key", [""])[0]
        if url.path != "/" or not hmac.compare_digest(given.encode(), self.proxy.key.encode()):
            return False
        self.send_response(303)
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", f"{self._cookie}={self.proxy.key}; Path=/; HttpOnly; SameSite=Strict")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _check_host(self) -> None:
        if self.headers.get("Host") not in {f"{name}:{self._port}" for name in NAMES}:
            self.close_connection = True
            raise Refusal(421, "this address is not that of the dashboard")

    def _check(self) -> None:
        """Refuse what the user has not asked for.

        Raises:
            Refusal: the request comes from another page, has no key, or leaves the dashboard.
        """
        try:
            given = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            given = None
        if given is None or not hmac.compare_digest(given.value.encode(), self.proxy.key.encode()):
            raise Refusal(403, "open the address that `finetune dashboard` has printed")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}:{self._port}" for name in NAMES}:
            raise Refusal(403, "another page may not use the dashboard")
        path = unquote(urlsplit(self.path).path)
        if not self.path.startswith("/") or any(segment in {".", ".."} for segment in path.replace("\\", "/").split("/")):
            raise Refusal(400, "the path leaves the dashboard")

    def _pass_on(self) -> None:
        dashboard = self.proxy.dashboard
        # the API server's proxy puts its own path in front of what it finds in pages and redirections
        path = self.path.removeprefix(dashboard.path)
        target = dashboard.path + (path if path.startswith("/") else f"/{path}")
        headers = {name: self.headers[name] for name in ASKED if name in self.headers} | dict(dashboard.headers)
        with self.proxy.client.rest.open(self.command, target, self._body(), headers) as answer:
            self._answer(answer)

    def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise Refusal(411, "the length of the request is not told")
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            raise Refusal(413, "the request is too long")
        return self.rfile.read(int(length)) or None

    def _answer(self, answer: HTTPResponse) -> None:
        self.begun = True
        try:
            self.send_response(answer.status)
            for name in ANSWERED:
                if (value := answer.headers.get(name)) is not None:
                    self.send_header(name, _one_line(value))
            if (location := answer.headers.get("Location")) is not None:
                self.send_header("Location", _one_line(self._local(location)))
            if answer.length is None and "Content-Length" not in answer.headers:
                self.close_connection = True
                self.send_header("Connection", "close")
            self.end_headers()
        except OSError as error:
            raise _BrowserGoneError from error
        for piece in _pieces(answer):
            try:
                self.wfile.write(piece)
                self.wfile.flush()
            except OSError as error:
                raise _BrowserGoneError from error
        self.close_connection = self.close_connection or bool(answer.length)  # it was cut off

    def _local(self, location: str) -> str:
        """A redirection of the API server's proxy, as one on this machine."""
        _, found, rest = location.partition(self.proxy.dashboard.path)
        return (rest or "/") if found else location

    def _say(self, status: int, words: str) -> None:
        if self.begun:
            return
        body = f"{words}\n".encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except OSError:
            self.close_connection = True


def _pieces(answer: HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read1(PIECE):
        yield piece


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")
