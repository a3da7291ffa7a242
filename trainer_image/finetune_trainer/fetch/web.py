"""GET over HTTP: redirects that give no secret away, and answers that are refused, missing or to be asked for again."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx2

from finetune_trainer.fetch.errors import FetchError, Temporary, What, denied, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


REDIRECTS = 10
"""How many redirects are followed."""

READ_SECONDS = 60.0
"""How long a connection may be silent."""

_AGAIN = {408, 425, 429}
"""Statuses below 500 that may be gone with the next try."""


def redacted(address: str) -> str:
    """An address without its query, which may hold a signature, and without user and password."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Web:
    """A client whose answers are streams."""

    def __init__(self, what: What) -> None:
        self._what = what
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(READ_SECONDS, connect=30.0),
            headers={"Accept-Encoding": "identity", "User-Agent": "finetune-operator"},
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def get(
        self, address: str, headers: Mapping[str, str], sign: Callable[[str], Mapping[str, str]]
    ) -> Iterator[httpx2.Response]:
        """The answer 200, 206 or 416 to a request, its body not yet read.

        Args:
            address: where the file is.
            headers: for whoever answers.
            sign: gives what only the server of this very address may see.

        Raises:
            Temporary: no answer, or one that may be another with the next try.
            FetchError: any other answer.
        """
        try:
            answer = self._follow(address, headers, sign)
        except httpx2.TransportError as error:
            raise Temporary(f"{redacted(address)}: {_words(error)}") from error
        except httpx2.InvalidURL as error:
            raise FetchError("InvalidSpec", f"{redacted(address)}: this is no address: {error}") from error
        try:
            yield answer
        except httpx2.TransportError as error:
            raise Temporary(f"{redacted(address)}: the connection was lost: {_words(error)}") from error
        finally:
            answer.close()

    def _follow(self, address: str, headers: Mapping[str, str], sign: Callable[[str], Mapping[str, str]]) -> httpx2.Response:
        target, private = address, dict(sign(address))
        for _ in range(REDIRECTS + 1):
            secrets = private if _origin(target) == _origin(address) else {}
            request = self._client.build_request("GET", target, headers={**headers, **secrets})
            answer = self._client.send(request, stream=True)
            if not answer.is_redirect:
                return self._checked(address, answer)
            answer.close()
            target = self._next(address, target, answer.headers["Location"])
        raise FetchError(
            "FetchFailed", f"{redacted(address)}: more than {REDIRECTS} redirects, the last one to {redacted(target)}"
        )

    def _next(self, address: str, before: str, location: str) -> str:
        target = urljoin(before, location)
        allowed = {"https"} if urlsplit(before).scheme == "https" else {"http", "https"}
        if urlsplit(target).scheme not in allowed:
            raise FetchError(
                "FetchFailed",
                f"{redacted(address)}: it redirects to {redacted(target)}, which is not https: that is not followed",
            )
        return target

    def _checked(self, address: str, answer: httpx2.Response) -> httpx2.Response:
        status = answer.status_code
        if status in {200, 206, 416}:
            encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding in {"", "identity"}:
                return answer
        answer.close()
        where = f"{redacted(address)}: HTTP {status} {answer.reason_phrase[:100]}"
        if status in {200, 206, 416}:
            raise FetchError("FetchFailed", f"{where}: it is sent with a Content-Encoding, which was not asked for")
        if status in _AGAIN or status >= 500:
            raise Temporary(where, _retry_after(answer.headers.get("Retry-After", "")))
        if status in {401, 403}:
            raise denied(
                self._what, f"{where}: it may not be read; see spec.{self._what}.tokenSecretRef, or renew a signed address"
            )
        if status in {404, 410}:
            raise missing(self._what, f"{where}: there is no such file")
        raise FetchError("FetchFailed", where)


def _origin(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc.lower()


def _words(error: Exception) -> str:
    return str(error)[:300] or type(error).__name__


def _retry_after(text: str) -> float | None:
    """Seconds of a header Retry-After, which has a number or a date."""
    if text.strip().isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max((date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
