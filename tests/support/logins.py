"""API servers that know some credentials and no others, and a program that gives new ones at each run."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.builders import DATA, raw_job
from tests.support.http_server import Seen

from finetune_client import FinetuneClient

Object = dict[str, Any]
TLS = DATA / "tls"
UNKNOWN = {"kind": "Status", "status": "Failure", "message": "Unauthorized", "reason": "Unauthorized", "code": 401}
EMPTY = json.dumps({"metadata": {"resourceVersion": "7"}, "items": []})
ALL = "/apis/llmonray.dev/v1alpha1/namespaces/team/finetunejobs"


class Server:
    """An API server that knows one token."""

    def __init__(self, knows: str = "token-1") -> None:
        self.knows = knows
        self.seen: list[Seen] = []
        self.refused: Callable[[], Any] = lambda: None
        """Called at each request that it refuses."""

    async def __call__(self, request: Seen) -> web.StreamResponse:
        self.seen.append(request)
        if request.headers.get("Authorization") != f"Bearer {self.knows}":
            if asyncio.iscoroutine(pending := self.refused()):
                await pending
            return web.json_response(UNKNOWN, status=401)
        if request.query.get("watch"):
            event = {"type": "ADDED", "object": raw_job(metadata={"name": "new", "uid": "u-1", "resourceVersion": "8"})}
            return web.Response(text=json.dumps(event) + "\n")
        return web.Response(text=EMPTY)

    @property
    def tokens(self) -> list[str]:
        """The last part of the token of each request."""
        return [seen.headers.get("Authorization", "-").rpartition("-")[2] for seen in self.seen]


class Program:
    """A program that gives token-1, token-2 and so on, one at each run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "login-program"
        self.gives(lambda number: {"token": f"token-{number}"})

    def gives(self, status: Callable[[int], Object]) -> None:
        """Let its runs have other results, up to the ninth."""
        for number in range(1, 10):
            answer = json.dumps({"kind": "ExecCredential", "status": status(number)})
            (self.folder / f"answer-{number}").write_text(answer)
        self.does(f"cat {self.folder}/answer-$(wc -l < {self.folder}/runs | tr -d ' ')")

    def does(self, body: str) -> None:
        """Let it do something else. It cannot be replaced in place while it may run."""
        new = self.path.with_suffix(".new")
        new.write_text(f"#!/bin/sh\necho run >> {self.folder}/runs\n{body}\n")
        new.chmod(0o755)
        new.replace(self.path)

    @property
    def runs(self) -> int:
        """How often it was run."""
        return len((self.folder / "runs").read_text().splitlines())

    @property
    def user(self) -> Object:
        """The user of a kubeconfig who logs in by it."""
        return {"exec": {"command": str(self.path), "interactiveMode": "Never"}}


def kubeconfig(folder: Path, server: str, user: Object, **cluster: Any) -> str:
    """Write a kubeconfig for a user of a server; gives its name."""
    content = {
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": server} | cluster}],
        "users": [{"name": "u", "user": user}],
        "current-context": "x",
    }
    path = folder / "config"
    path.write_text(json.dumps(content))
    return str(path)


async def lists(client: FinetuneClient, times: int = 1) -> None:
    """Have a client list its jobs."""
    for _ in range(times):
        await asyncio.to_thread(client.list)


Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def tls_of_server() -> ssl.SSLContext:
    """Shows the certificate of api.example, and asks for one of its authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(TLS / "ca.crt"))
    context.load_cert_chain(TLS / "server.crt", TLS / "server.key")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


@asynccontextmanager
async def serving(handle: Handle, context: ssl.SSLContext) -> AsyncIterator[str]:
    """A server that speaks TLS; gives its address."""
    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


TRUST = {"certificate-authority": str(TLS / "ca.crt"), "tls-server-name": "api.example"}


def certificate_of(name: str) -> tuple[str, str]:
    """A certificate that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    clear = serialization.NoEncryption()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, clear)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode(), text.decode()


OLD = certificate_of("old")
NEW = (TLS / "client.crt").read_text(), (TLS / "client.key").read_text()


class Peers:
    """A server that knows the client of a certificate."""

    def __init__(self) -> None:
        self.knows = "old"
        self.names: list[str] = []
        """Whose certificate each request has shown."""
        self.refused: Callable[[], None] = lambda: None
        """Called at each request that it refuses."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        self.names.append(peer["subject"][0][0][1] if peer else "nobody")
        if self.names[-1] == self.knows:
            return web.Response(text=EMPTY)
        self.refused()
        return web.json_response(UNKNOWN, status=401)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        context = tls_of_server()
        context.load_verify_locations(cadata=OLD[0])
        async with serving(self.handle, context) as url:
            yield url
