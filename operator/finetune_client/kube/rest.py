"""Requests to the API server: JSON in, JSON out, and streams of lines; refusals become errors that say what to do."""

from __future__ import annotations

import errno
import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from finetune_client.errors import (
    ExistsError,
    ForbiddenError,
    MissingError,
    MissingKindError,
    RefusedError,
    UnreachableError,
)
from finetune_client.kube.credentials import Credential, Credentials
from finetune_client.kube.kubeconfig import Login
from finetune_client.kube.transport import Connection, cause, connector

Object = dict[str, Any]

REQUEST_SECONDS = 30.0
PATIENCE_SECONDS = 120.0
"""How long an API server may be silent, as during an upgrade, before a watch or the following of a log gives up."""
ANSWER_LIMIT = 64 * 1024 * 1024
"""Longest answer in bytes; a LIST comes in pages of far less."""
LINE_LIMIT = 8 * 1024 * 1024
"""Longest line of a stream in bytes: etcd holds no object of this size."""
MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Answer:
    """What a server has said, whatever its status."""

    status: int
    body: bytes


@dataclass(frozen=True, repr=False)
class _Request:
    """A request without the headers that all of them have."""

    method: str
    target: str
    body: bytes | None
    headers: Mapping[str, str]


class Stop:
    """Ends streams from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._connection: Connection | None = None

    @property
    def is_set(self) -> bool:
        """Whether streams have to end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Pause, unless it is set meanwhile; say whether it is."""
        return self._event.wait(seconds)

    def set(self) -> None:
        """End the stream that is open, and let no other one begin."""
        with self._lock:
            self._event.set()
            if self._connection is not None and self._connection.sock is not None:
                with suppress(OSError):
                    self._connection.sock.shutdown(2)

    @contextmanager
    def ending(self, connection: Connection) -> Iterator[None]:
        """Have `set` end this connection during the block."""
        with self._lock:
            self._connection = connection
        try:
            yield
        finally:
            with self._lock:
                self._connection = None


class Rest:
    """The API server of a login. Several threads may use it.

    Raises, in every method: UnreachableError without an answer; RefusedError, or one of its kinds, on a refusal;
    NotLoggedInError where there are no credentials (any more).
    """

    def __init__(self, login: Login, seconds: float = REQUEST_SECONDS, clock: Callable[[], float] = monotonic) -> None:
        self.login = login
        self._seconds = seconds
        self._credentials = Credentials(login, clock)
        self._connect = connector(login, self._credentials)
        self._prefix = urlsplit(login.server).path

    def get(self, path: str, **query: str) -> Object:
        """A JSON object."""
        return self.call("GET", path, query)

    def items(self, path: str, **query: str) -> tuple[list[Object], str]:
        """All objects of a LIST, page by page, and the version of the state that they show."""
        found: list[Object] = []
        query = {"limit": "500", **query}
        while True:
            page = self.get(path, **query)
            metadata = page.get("metadata") if isinstance(page.get("metadata"), dict) else {}
            found += [item for item in page.get("items") or () if isinstance(item, dict)]
            if not (token := (metadata or {}).get("continue")):
                return found, str((metadata or {}).get("resourceVersion") or "")
            query["continue"] = str(token)

    def call(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Object:
        """Send an object, and read one."""
        answer = self.ask(method, path, query, body)
        if answer.status >= 400:
            raise self._refusal(answer, path)
        return self._object(answer.body)

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request, and read the whole answer; a refusal is an answer too."""
        with self._exchange(self._request(method, path, query, body, headers)) as response:
            return Answer(response.status, _read(response, monotonic() + 2 * self._seconds))

    @contextmanager
    def open(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; the answer is read piece by piece within the block, whatever its status."""
        with self._exchange(self._request(method, target, None, body, headers)) as response:
            yield response

    def lines(self, path: str, query: Mapping[str, str], seconds: float, stop: Stop) -> Iterator[bytes]:
        """The lines of an answer as they come, none of which takes longer than some seconds."""
        with self._exchange(self._request("GET", path, query, None, None), seconds, stop) as response:
            if response.status >= 400 and not stop.is_set:
                raise self._refusal(Answer(response.status, _read(response, monotonic() + seconds)), path)
            while not stop.is_set and (line := response.readline(LINE_LIMIT)):
                yield line

    @contextmanager
    def _exchange(
        self, request: _Request, seconds: float | None = None, stop: Stop | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, which is sent once more with new credentials if the server does not know who asks (401).

        Every request can be sent again: its body is in memory, and a server that answers 401 has done nothing.
        """
        used = self._credentials.current()
        with self._sent(request, used, seconds, stop) as response:
            new = self._credentials.renewed(used) if response.status == 401 else None
            if new is None or (stop is not None and stop.is_set):
                yield response
                return
        with self._sent(request, new, seconds, stop) as response:
            yield response

    @contextmanager
    def _sent(
        self, request: _Request, credential: Credential, seconds: float | None, stop: Stop | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer on a connection of its own; whatever goes wrong on it means that there is no answer."""
        connection = self._connect(credential.certificate, seconds or self._seconds)
        try:
            with stop.ending(connection) if stop is not None else nullcontext():
                yield _answer(connection, request, credential)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            reason, hint = cause(error)
            message = f"the API server at {self.login.server} does not answer: {reason}"
            raise UnreachableError(message, hint) from error
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Any, headers: Mapping[str, str] | None
    ) -> _Request:
        target = self._prefix + path + ("?" + urlencode(query, errors="surrogateescape") if query else "")
        media = MERGE_PATCH if method == "PATCH" else "application/json"
        media = "application/octet-stream" if isinstance(body, bytes) else media
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        content = {} if data is None else {"Content-Type": media}
        return _Request(method, target, data, content | dict(headers or {}))

    def _object(self, body: bytes) -> Object:
        value = _object_of(body)
        if value is None:
            if _is_page(body):
                raise self._no_api(Answer(200, body))
            message = f"{self.login.server} does not answer as an API server of Kubernetes does"
            raise UnreachableError(message, "see server of the kubeconfig", body[:1000].decode(errors="replace"))
        return value

    def _no_api(self, answer: Answer) -> UnreachableError:
        """A proxy, a portal or a load balancer answers in the API server's place."""
        message = f"{self.login.server} answers with a web page ({answer.status}) and not as an API server of Kubernetes does"
        hint = "see server of the kubeconfig, HTTPS_PROXY and NO_PROXY; or log in to the network, and try again"
        return UnreachableError(message, hint, answer.body[:1000].decode(errors="replace"))

    def _refusal(self, answer: Answer, path: str) -> RefusedError | UnreachableError:
        """What a refusal means."""
        if _is_page(answer.body):
            return self._no_api(answer)
        told = _object_of(answer.body) or {}
        said = str(told.get("message") or answer.body[:200].decode(errors="replace")).strip() or "nothing"
        named = isinstance(told.get("details"), dict) and told["details"].get("name")
        server, status = self.login.server, answer.status
        refusal: RefusedError | UnreachableError
        match status:
            case 401:
                message = f"the API server at {server} does not know you (401)"
                refusal = ForbiddenError(401, message, "log in again", said.replace("Unauthorized", ""))
            case 403:
                hint = "ask the cluster's administrator; `finetune doctor` lists which rights are there and which are missing"
                refusal = ForbiddenError(403, f"the API server says: {said}", hint)
            case 404 if not named:
                refusal = MissingKindError(404, f"the cluster at {server} does not know {path}", details=said)
            case 404:
                refusal = MissingError(404, f"there is no {named}", details=said)
            case 409 if told.get("reason") == "AlreadyExists":
                refusal = ExistsError(409, said)
            case 429 | 500 | 502 | 503 | 504:
                message = f"the API server at {server} cannot serve this now ({status}): {said}"
                refusal = UnreachableError(message, "try again later")
            case _:
                refusal = RefusedError(status, f"the API server says: {said}")
        return refusal


def _answer(connection: Connection, request: _Request, credential: Credential) -> http.client.HTTPResponse:
    """Connect, send, and read the beginning of the answer."""
    headers = {"Accept": "application/json", "User-Agent": "finetune"} | dict(credential.headers) | dict(request.headers)
    connection.connect()
    # A server that refuses a request may close the connection before it has read the body; its answer can be read all the same.
    with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        connection.request(request.method, request.target, request.body, headers)
    return connection.getresponse()


def _object_of(body: bytes) -> Object | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_page(body: bytes) -> bool:
    return body[:200].lstrip().startswith(b"<")


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The body, which has to be there in time however slowly it comes."""
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if monotonic() > deadline:
            raise TimeoutError
        if len(data) > ANSWER_LIMIT:
            raise OSError(errno.EMSGSIZE, "")
    if response.length:
        raise http.client.IncompleteRead(bytes(data), response.length)
    return bytes(data)


def part(text: str) -> str:
    """A name as a part of a path."""
    return quote(text, safe="", errors="surrogateescape")
