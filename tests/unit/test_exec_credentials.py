"""Credentials are renewed while a client is in use: what the API server refuses decides, the clock is a hint only."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from tests.support.http_server import Seen, running
from tests.support.logins import ALL, TRUST, UNKNOWN, Program, Server, kubeconfig, lists, tls_of_server
from tests.support.moments import just_before

from finetune_client import AsyncFinetuneClient, FinetuneClient
from finetune_client.errors import ForbiddenError, NotLoggedInError
from finetune_client.kube.kubeconfig import read_login
from finetune_client.kube.rest import Rest, Stop


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def soon(seconds: float) -> str:
    """A time as a program tells when its token expires."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def test_a_token_that_the_server_knows_no_longer_is_renewed_and_the_request_repeated(
    tmp_path: Path, program: Program
) -> None:
    server = Server()
    async with running(server) as url:
        client = FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user))
        await lists(client, 2)
        server.knows = "token-2"
        await lists(client, 2)
    assert server.tokens == ["1", "1", "1", "2", "2"]
    assert program.runs == 2


async def test_a_new_token_that_is_refused_as_well_is_the_servers_word(tmp_path: Path, program: Program) -> None:
    server = Server("token of nobody")
    async with running(server) as url:
        client = FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user))
        client.rest = Rest(client.rest.login, clock=lambda: 0.0)
        for _ in range(3):  # whoever asks again at once has the program run no more often
            with pytest.raises(ForbiddenError, match=r"does not know you \(401\)") as error:
                await lists(client)
    assert (error.value.status, error.value.hint) == (401, "log in again")
    assert server.tokens == ["1", "2", "2", "2"]
    assert program.runs == 2


async def test_refusals_have_the_program_run_again_after_a_pause(tmp_path: Path, program: Program) -> None:
    server, now = Server("token of nobody"), [0.0]
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)), clock=lambda: now[0])
        for now[0] in (0.0, 9.0, 11.0):
            answer = await asyncio.to_thread(rest.ask, "GET", ALL)
            assert (answer.status, json.loads(answer.body)) == (401, UNKNOWN)
    assert server.tokens == ["1", "2", "2", "2", "3"]


async def test_the_same_token_again_is_not_sent_again(tmp_path: Path, program: Program) -> None:
    program.gives(lambda _: {"token": "token-1"})
    server = Server("token-2")
    async with running(server) as url:
        with pytest.raises(ForbiddenError, match="does not know you"):
            await lists(FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user)))
    assert (server.tokens, program.runs) == (["1"], 2)


async def test_a_token_of_the_kubeconfig_is_sent_once(tmp_path: Path) -> None:
    server = Server()
    async with running(server) as url:
        with pytest.raises(ForbiddenError, match="does not know you"):
            await lists(FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, {"token": "my-old"})))
    assert server.tokens == ["old"]


async def test_a_program_that_fails_at_renewal_is_named_with_its_words(tmp_path: Path, program: Program) -> None:
    server = Server()
    async with running(server) as url:
        client = FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user))
        await lists(client)
        server.knows = "token-3"
        program.does("echo the session has ended >&2; exit 3")
        with pytest.raises(NotLoggedInError, match="login-program") as error:
            await lists(client)
        assert "gave no credentials (exit code 3)" in error.value.message
        assert error.value.details == "the session has ended"
        program.gives(lambda number: {"token": f"token-{number}"})  # somebody has logged in again
        await lists(client)
    assert server.tokens == ["1", "1", "1", "3"]


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.123456789Z", "%Y-%m-%dT%H:%M:%S"])
async def test_a_token_is_renewed_somewhat_before_it_expires(tmp_path: Path, program: Program, form: str) -> None:
    server, now, expires = Server(), [0.0], (datetime.now(UTC) + timedelta(seconds=900)).strftime(form)
    program.gives(lambda number: {"token": f"token-{number}", "expirationTimestamp": expires})
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)), clock=lambda: now[0])
        for now[0], server.knows in ((0.0, "token-1"), (800.0, "token-1"), (895.0, "token-2"), (1700.0, "token-2")):
            assert await asyncio.to_thread(rest.get, ALL)
    assert (server.tokens, program.runs) == (["1", "1", "2", "2"], 2)


@pytest.mark.parametrize(
    "expires",
    [
        pytest.param(lambda: "1970-01-01T00:00:00Z", id="the clock is years ahead"),
        pytest.param(lambda: soon(900 - 1200), id="the clock is 20 minutes ahead"),
        pytest.param(lambda: soon(900 + 1200), id="the clock is 20 minutes behind"),
        pytest.param(lambda: "tomorrow", id="no time"),
    ],
)
async def test_a_wrong_clock_has_the_program_run_no_more_often(
    tmp_path: Path, program: Program, expires: Callable[[], str]
) -> None:
    server, now = Server(), [0.0]
    program.gives(lambda number: {"token": f"token-{number}", "expirationTimestamp": expires()})
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)), clock=lambda: now[0])
        for now[0] in (0.0, 1.0, 61.0, 890.0):
            await asyncio.to_thread(rest.get, ALL)
        assert program.runs == 1
        server.knows = "token-2"  # it has expired, whatever the clock says
        await asyncio.to_thread(rest.get, ALL)
    assert (server.tokens[-1], program.runs) == ("2", 2)


async def test_a_token_that_seems_to_expire_in_a_moment_is_renewed_once_a_minute(tmp_path: Path, program: Program) -> None:
    server, now = Server(), [0.0]
    program.gives(lambda _: {"token": "token-1", "expirationTimestamp": soon(80)})
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)), clock=lambda: now[0])
        for now[0] in (0.0, 20.0, 40.0, 59.0):
            await asyncio.to_thread(rest.get, ALL)
        assert program.runs == 1
        now[0] = 61.0
        await asyncio.to_thread(rest.get, ALL)
        assert program.runs == 2


async def test_threads_that_share_a_client_have_the_program_run_once(tmp_path: Path, program: Program) -> None:
    server, count = Server(), 6
    refused, all_refused = [0], asyncio.Event()

    async def refuse_all_at_once() -> None:
        refused[0] += 1
        if refused[0] == count:
            all_refused.set()
        await all_refused.wait()

    hours = itertools.count(0.0, 3600.0)  # pass at each look at the clock: not the pause between runs is what is shown here
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)), clock=lambda: next(hours))
        await asyncio.to_thread(rest.get, ALL)
        server.knows, server.refused = "token-2", refuse_all_at_once
        await asyncio.gather(*(asyncio.to_thread(rest.get, ALL) for _ in range(count)))
    assert server.tokens == ["1"] * (1 + count) + ["2"] * count
    assert program.runs == 2


async def test_threads_that_begin_together_have_the_program_run_once(tmp_path: Path, program: Program) -> None:
    async with running(Server()) as url, AsyncFinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user)) as client:
        await asyncio.gather(*(client.list() for _ in range(6)))
    assert program.runs == 1


async def test_a_watch_that_is_refused_at_its_start_begins_with_a_new_token(tmp_path: Path, program: Program) -> None:
    server = Server()

    async def expires_after_the_list(request: Seen) -> web.StreamResponse:
        answer = await server(request)
        server.knows = "token-2"
        return answer

    async with running(expires_after_the_list) as url:
        changes = AsyncFinetuneClient(kubeconfig=kubeconfig(tmp_path, url, program.user)).watch()
        change = await anext(changes)
        await changes.aclose()
    assert (change.kind, change.job.name) == ("ADDED", "new")
    assert [(seen.query.get("watch"), token) for seen, token in zip(server.seen, server.tokens, strict=True)][:3] == [
        (None, "1"),
        ("true", "1"),
        ("true", "2"),
    ]
    assert program.runs == 2


async def test_a_watch_that_is_stopped_while_the_program_runs_ends_without_an_error(tmp_path: Path, program: Program) -> None:
    server, stop = Server(), Stop()
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)))
        await asyncio.to_thread(rest.get, ALL)
        server.knows = "token-2"
        with just_before("subprocess.Popen", lambda *_: stop.set()):
            assert await asyncio.to_thread(lambda: list(rest.lines(ALL, {"watch": "true"}, 30.0, stop))) == []
    assert (server.tokens, program.runs) == (["1", "1"], 2)


async def test_the_body_of_a_request_is_sent_again(tmp_path: Path, program: Program) -> None:
    server = Server("token-2")
    async with running(server) as url:
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user)), clock=lambda: 0.0)
        await asyncio.to_thread(rest.ask, "PUT", ALL, {"offset": "0"}, b"a part of a file", {"X-Finetune-Token": "mine"})
        await asyncio.to_thread(rest.call, "PATCH", ALL, None, {"spec": {}})
        server.knows = "token-3"
        answer = await asyncio.to_thread(rest.ask, "GET", ALL)
        assert answer.status == 401  # a refusal has had the program run but a moment ago
    assert [(seen.method, seen.text, seen.query) for seen in server.seen[:2]] == [
        ("PUT", "a part of a file", {"offset": "0"})
    ] * 2
    assert [seen.headers["X-Finetune-Token"] for seen in server.seen[:2]] == ["mine"] * 2
    assert server.tokens == ["1", "2", "2", "2"]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_part_of_a_file_that_is_refused_before_all_of_it_was_read_is_sent_again(
    tmp_path: Path, program: Program, scheme: str
) -> None:
    """As Go's server does it: it answers, and closes the connection on what is still under way."""
    body, got = bytes(32 << 20), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"Bearer token-1" in head:
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        else:
            got.append(await reader.readexactly(len(body)))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    tls = tls_of_server() if scheme == "https" else None
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        rest = Rest(read_login(kubeconfig=kubeconfig(tmp_path, url, program.user, **TRUST)))
        answer = await asyncio.to_thread(rest.ask, "PUT", ALL, None, body)
    assert answer.status == 200
    assert got == [body]


async def test_a_token_file_that_was_renewed_meanwhile_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("token-1")
    server = Server("token-2")
    server.refused = lambda: file.write_text("token-2\n")
    async with running(server) as url:
        await lists(FinetuneClient(kubeconfig=kubeconfig(tmp_path, url, {"tokenFile": str(file)})))
    assert server.tokens == ["1", "2"]


async def test_an_auth_provider_is_asked_again(tmp_path: Path) -> None:
    """In a process of its own: the library reads KUBECONFIG when it is imported."""
    server = Server("token-2")

    def write(token: str, url: str) -> str:
        return kubeconfig(tmp_path, url, {"auth-provider": {"name": "gcp", "config": {"access-token": token}}})

    async with running(server) as url:
        environment = os.environ | {"KUBECONFIG": write("token-1", url)}
        server.refused = lambda: write("token-2", url)
        code = "from finetune_client import FinetuneClient; FinetuneClient().list()"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment)
        assert await process.wait() == 0
    assert server.tokens == ["1", "2"]
