"""A way to a real API server that can be cut: watches break off, and may not be allowed to go on where they were."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.support.kubectl import Kubectl

EXPIRED = {
    "type": "ERROR",
    "object": {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version: 1 (2)", "reason": "Expired", "code": 410,
    },
}  # fmt: skip
"""What an API server answers to a watch whose resourceVersion it keeps no history of."""


class ApiProxy:
    """Hands requests on to the API server with the administrator's certificate."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self.url = ""
        self.expired: list[str] = []
        """Paths of watches that were answered with 410."""
        self._server, self._session = server, session
        self._cut = False
        self._forget: set[str] = set()
        """Paths that were watched when the connection was cut, until they are watched again."""
        self._watches: list[tuple[web.BaseRequest, str]] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, kubectl: Kubectl) -> AsyncIterator[ApiProxy]:
        """Serve on a free port of loopback."""
        config = json.loads(kubectl.run("config", "view", "--raw", "--minify", "-o", "json").stdout)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {user['token']}"} if "token" in user else {})
        connector = aiohttp.TCPConnector(ssl=_tls(cluster, user), limit=0)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            proxy = cls(cluster["server"], session)
            runner = web.ServerRunner(web.Server(proxy._handle), shutdown_timeout=0.1)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host, port = runner.addresses[0][:2]
                proxy.url = f"http://{host}:{port}"
                yield proxy
            finally:
                await runner.cleanup()

    def write_kubeconfig(self, path: Path) -> None:
        """A kubeconfig whose server is this proxy."""
        text = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "the-proxy-has-its-own"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(text))

    def cut(self) -> None:
        """Break all connections, and let none through."""
        self._cut = True
        self._forget = {path for _, path in self._watches}
        for request, _ in self._watches:
            if request.transport is not None:
                request.transport.abort()

    def mend(self) -> None:
        """Let connections through again; the place of the watches is forgotten."""
        self._cut = False

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._cut:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        query = dict(request.query)
        watched = request.path if "watch" in query else None
        if watched in self._forget:
            self._forget.discard(watched)
            self.expired.append(watched)
            return web.json_response(EXPIRED)
        headers = {name: request.headers[name] for name in ("Accept", "Content-Type") if name in request.headers}
        url = self._server + request.path
        body = await request.read() or None  # an empty one would be sent with a type that a GET must not have
        async with self._session.request(
            request.method, url, params=query, headers=headers, data=body, timeout=aiohttp.ClientTimeout(None)
        ) as answer:
            if watched is None:
                return await self._answer(request, answer)
            self._watches.append((request, watched))
            try:
                return await self._answer(request, answer)
            finally:
                self._watches = [entry for entry in self._watches if entry[0] is not request]

    async def _answer(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
        await response.prepare(request)
        with suppress(ConnectionError, asyncio.CancelledError):
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
        return response


def _tls(cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=cluster.get("certificate-authority"))
    if "certificate-authority-data" in cluster:
        tls.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if "client-certificate" in user:
        tls.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"\n".join(base64.b64decode(user[f"client-{part}-data"]) for part in ("certificate", "key")))
            file.flush()
            tls.load_cert_chain(file.name)
    return tls
