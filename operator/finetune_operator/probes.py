"""The probes of the kubelet: alive from the first second, ready when the cluster has been read once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def answering(port: int, is_ready: Callable[[], bool]) -> AsyncIterator[None]:
    """Answer ``/healthz`` and ``/readyz`` as long as the loop runs: a loop that is stuck answers neither."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/healthz":
            return web.Response(text="alive\n")
        if request.path != "/readyz":
            return web.Response(status=404, text="ask for /healthz or /readyz\n")
        return web.Response(text="ready\n") if is_ready() else web.Response(status=503, text="reading the cluster\n")

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()  # noqa: S104 - the kubelet asks from outside the pod
        yield
    finally:
        await runner.cleanup()
