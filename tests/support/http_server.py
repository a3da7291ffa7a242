"""Small HTTP servers on loopback: real sockets, so that tests see what clients send and do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from aiohttp import web
from multidict import CIMultiDict


@dataclass
class Seen:
    """A request as it came over the wire."""

    method: str
    path: str
    query: dict[str, str]
    headers: CIMultiDict[str]
    text: str


class ResetConnection(Exception):  # noqa: N818 - an instruction to the server, no error
    """Raised by a handler: the client sees its connection reset, and no answer."""


Handler = Callable[[Seen], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def running(handler: Handler) -> AsyncIterator[str]:
    """Serve on a free port of loopback; gives the address."""

    async def handle(request: web.Request) -> web.StreamResponse:
        query, headers = dict(request.query), CIMultiDict(request.headers)
        seen = Seen(request.method, request.path, query, headers, await request.text())
        try:
            return await handler(seen)
        except ResetConnection:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@dataclass
class Canned:
    """A server that says the same to everybody, and keeps what it was told."""

    status: int = 200
    body: str = "{}"
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    silent: bool = False
    """Never answer."""
    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, request: Seen) -> web.StreamResponse:
        self.seen.append(request)
        if self.reset:
            raise ResetConnection
        if self.silent:
            await asyncio.Event().wait()
        return web.Response(status=self.status, text=self.body, headers=self.headers)


async def until(condition: Callable[[], Any], what: str, *, seconds: float = 30.0) -> None:
    """Poll until a condition holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"not within {seconds} s: {what}"
        await a_moment()


async def a_moment() -> None:
    """The pause between two looks of a poll."""
    await asyncio.sleep(0.005)
