"""The command line logs in as kubectl does: kubeconfigs, programs that give tokens, certificates, proxies."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.support.builders import DATA
from tests.support.http_server import Canned, running
from tests.support.logins import serving, tls_of_server

from finetune_client import FinetuneClient
from finetune_client.errors import ClientError, NotLoggedInError, UnreachableError
from finetune_client.kube.kubeconfig import read_login

Object = dict[str, Any]
TLS = DATA / "tls"
EMPTY = json.dumps({"metadata": {}, "items": []})


def config(path: Path, server: str, user: Object | None = None, cluster: Object | None = None, **top: Any) -> Path:
    """A kubeconfig in YAML as people write it."""
    context = {"cluster": "c", "user": "u", "namespace": "team"}
    content = {
        "contexts": [{"name": "x", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": server} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {}}],
        "current-context": "x",
    }
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("# a comment, so that it is no JSON\n" + json.dumps(content | top))
    return path


async def asked(path: Path, canned: Canned) -> Any:
    """The headers of a LIST with a kubeconfig."""
    client = FinetuneClient(kubeconfig=str(path))
    await asyncio.to_thread(client.list)
    return canned.seen[-1].headers


async def test_a_token_of_digits_is_sent_as_it_stands_in_the_file(tmp_path: Path) -> None:
    canned = Canned(body=EMPTY)
    async with running(canned) as url:
        path = config(tmp_path / "config", url)
        text = path.read_text().replace('"user": {}', '"user": {token: 0123e5}')
        path.write_text(text)
        assert (await asked(path, canned))["Authorization"] == "Bearer 0123e5"


async def test_a_token_is_read_from_a_file_beside_the_kubeconfig(tmp_path: Path) -> None:
    canned = Canned(body=EMPTY)
    (tmp_path / "token").write_text("secret\n")
    async with running(canned) as url:
        assert (await asked(config(tmp_path / "config", url, {"tokenFile": "token"}), canned))["Authorization"] == "Bearer secret"


async def test_a_user_may_act_as_another(tmp_path: Path) -> None:
    canned = Canned(body=EMPTY)
    async with running(canned) as url:
        headers = await asked(config(tmp_path / "config", url, {"token": "t", "as": "jane"}), canned)
    assert headers["Impersonate-User"] == "jane"


def program(folder: Path, body: str) -> Object:
    path = folder / "login-program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"command": "./login-program", "args": ["x"], "interactiveMode": "Never"}


async def test_a_program_of_the_kubeconfig_gives_the_token_once(tmp_path: Path) -> None:
    canned = Canned(body=EMPTY)
    credentials = json.dumps({"kind": "ExecCredential", "status": {"token": "from-program"}})
    script = f"echo \"$KUBERNETES_EXEC_INFO\" >> asked.json\necho '{credentials}'"
    async with running(canned) as url:
        user = {"exec": program(tmp_path, f"cd {tmp_path}\n{script}")}
        client = FinetuneClient(kubeconfig=str(config(tmp_path / "config", url, user)))
        await asyncio.to_thread(client.list)
        await asyncio.to_thread(client.list)
    assert [seen.headers["Authorization"] for seen in canned.seen] == ["Bearer from-program"] * 2
    (question,) = (tmp_path / "asked.json").read_text().splitlines()
    assert json.loads(question)["spec"] == {"interactive": False}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo no session >&2; exit 3", "gave no credentials (exit code 3)"),
        ("echo hello", "gave no credentials (exit code 0)"),
    ],
)
def test_a_program_that_gives_nothing_is_named_with_its_words(tmp_path: Path, body: str, words: str) -> None:
    path = config(tmp_path / "config", "http://127.0.0.1:1", {"exec": program(tmp_path, body)})
    with pytest.raises(NotLoggedInError, match="login-program") as error:
        FinetuneClient(kubeconfig=str(path)).list()
    assert words in error.value.message
    assert error.value.details == ("no session" if "session" in body else "")


def test_a_program_that_is_not_there_is_named_with_how_to_install_it(tmp_path: Path) -> None:
    user = {"exec": {"command": "no-such-program", "installHint": "get it from example.com"}}
    with pytest.raises(NotLoggedInError, match="no-such-program") as error:
        FinetuneClient(kubeconfig=str(config(tmp_path / "config", "http://127.0.0.1:1", user))).list()
    assert error.value.hint == "get it from example.com"


def test_of_several_files_the_first_that_has_a_name_wins(tmp_path: Path) -> None:
    first = config(tmp_path / "a" / "config", "http://first", {"token": "1"}, **{"current-context": ""})
    second = config(tmp_path / "b" / "config", "http://second", {"token": "2"})
    login = read_login(kubeconfig=os.pathsep.join([str(tmp_path / "missing"), str(first), str(second)]))
    assert (login.server, login.user["token"], login.context) == ("http://first", "1", "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no kubeconfig with a context"),
        ("[]", "there is no kubeconfig with a context"),
        ("a: [", "is no YAML"),
        ("contexts: [{name: x, context: {cluster: c}}]", "has no current context"),
        ("contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: y", "no context 'y'"),
        ("contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x", "names a cluster without a server"),
        ("contexts: [1, {name: x}, {name: y, context: 3}]\ncurrent-context: x", "there is no kubeconfig with a context"),
    ],
)
def test_what_is_wrong_with_a_kubeconfig_is_told_with_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(NotLoggedInError, match="no cluster to talk to: ") as error:
        read_login(kubeconfig=str(path))
    assert words in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("server", ["not a url", "ftp://x", "http://", "https://host:port"])
def test_an_address_that_is_none_is_named(tmp_path: Path, server: str) -> None:
    with pytest.raises(NotLoggedInError, match="is no address of a server"):
        FinetuneClient(kubeconfig=str(config(tmp_path / "config", server)))


@asynccontextmanager
async def tls_server(canned: Canned) -> AsyncIterator[str]:
    """A server that shows the certificate of api.example, and asks for one of its authority."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peercert") if request.transport else None
        canned.headers["X-Peer"] = "client" if peer else "nobody"
        return web.Response(text=canned.body, headers=canned.headers)

    async with serving(handle, tls_of_server()) as url:
        yield url


async def test_certificates_of_the_kubeconfig_are_shown_and_demanded(tmp_path: Path) -> None:
    canned = Canned(body=EMPTY)
    user = {"client-certificate": str(TLS / "client.crt"), "client-key": str(TLS / "client.key")}
    trusted = {"certificate-authority": str(TLS / "ca.crt"), "tls-server-name": "api.example"}
    async with tls_server(canned) as url:
        client = FinetuneClient(kubeconfig=str(config(tmp_path / "config", url, user, trusted)))
        await asyncio.to_thread(client.list)
        assert canned.headers["X-Peer"] == "client"
        for cluster, words in (
            ({"certificate-authority": str(TLS / "ca.crt")}, "not trusted (IP address mismatch"),
            ({"tls-server-name": "api.example"}, "not trusted (self-signed certificate in certificate chain)"),
        ):
            client = FinetuneClient(kubeconfig=str(config(tmp_path / "config", url, user, cluster)))
            with pytest.raises(UnreachableError) as error:
                await asyncio.to_thread(client.list)
            assert words in error.value.message
        client = FinetuneClient(kubeconfig=str(config(tmp_path / "config", url, user, {"insecure-skip-tls-verify": "true"})))
        await asyncio.to_thread(client.list)


@pytest.mark.parametrize(
    "cluster",
    [
        {"certificate-authority-data": "!"},
        {"certificate-authority": "nowhere.crt"},
        {"certificate-authority-data": "bm9uZQ=="},
    ],
)
def test_certificates_that_cannot_be_read_are_told(tmp_path: Path, cluster: Object) -> None:
    with pytest.raises(NotLoggedInError):
        FinetuneClient(kubeconfig=str(config(tmp_path / "config", "https://127.0.0.1:1", None, cluster)))


async def test_an_https_server_is_reached_through_the_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        client = FinetuneClient(kubeconfig=str(config(tmp_path / "config", "https://api.example:6443", {"token": "t"})))
        with pytest.raises(ClientError) as error:
            await asyncio.to_thread(client.list)
    assert "Tunnel connection failed: 403" in error.value.message
    assert asked[0].startswith(b"CONNECT api.example:6443 ")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0" in asked[0]
    assert b"Bearer" not in asked[0]
