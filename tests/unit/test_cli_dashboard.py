"""``finetune dashboard``: a proxy on this machine that adds the job's token, for the user's own page only."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from tests.support.http_server import Seen
from tests.support.shell import CLUSTER, SUBMISSION, TOKEN, Shell, shell_at

pytestmark = pytest.mark.sampled(4)

Object = dict[str, Any]
LOGS = f"/api/jobs/{SUBMISSION}/logs"
PREFIX = f"/api/v1/namespaces/team/services/{CLUSTER}-head-svc:8265/proxy"


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        shell.add(phase="Running", status={"attempt": 1, "ray": {"cluster": CLUSTER, "submissionId": SUBMISSION}})
        shell.cluster.start_ray(log="step 1\n")
        yield shell


@asynccontextmanager
async def dashboard() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The command in a process of its own, and the address that it prints."""
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "finetune_client.cli", "dashboard", "demo", **pipes)
    assert process.stdout is not None
    try:
        yield process, (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def browser(address: str, *, logged_in: bool = True) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser that has opened the address, or has only its first part."""
    url = urlsplit(address)
    jar = aiohttp.CookieJar(unsafe=True)  # of an address of numbers
    async with aiohttp.ClientSession(f"http://{url.netloc}", cookie_jar=jar) as session:
        if logged_in:
            async with session.get(f"/?{url.query}", allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (303, "/")
                cookie = answer.headers["Set-Cookie"]
                assert "HttpOnly" in cookie
                assert "SameSite=Strict" in cookie
        yield session


async def test_the_dashboard_is_served_with_the_jobs_token_until_ctrl_c(shell: Shell) -> None:
    async with dashboard() as (process, address), browser(address) as session:
        assert address.startswith("http://127.0.0.1:")
        async with session.get(LOGS) as answer:
            assert (answer.status, await answer.json()) == (200, {"logs": "step 1\n"})
        async with session.post("/api/jobs/", json={"submission_id": "mine", "entrypoint": "x"}) as answer:
            assert (answer.status, (await answer.json())["submission_id"]) == (200, "mine")
        seen = shell.cluster.ray.requests[-1]
        assert seen.headers["x-ray-authorization"] == f"Bearer {TOKEN}"
        assert "Cookie" not in seen.headers
        assert urlsplit(address).query.removeprefix("key=") not in str(shell.cluster.seen)
        async with session.get("/api/nothing") as answer:
            assert answer.status == 404
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 130
        assert err.decode().startswith("This is the Ray dashboard of finetunejob/demo, with the job's token and your rights.")
        assert TOKEN not in err.decode() + address


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (LOGS, {"Host": "evil.example"}, 421),
        (LOGS, {"Host": "127.0.0.1"}, 421),
        (LOGS, {"Origin": "http://evil.example"}, 403),
        (LOGS, {"Origin": "http://127.0.0.1:1"}, 403),
        ("/%2e%2e/%2e%2e/secrets", {}, 400),
        ("/a/..%2f..%2fsecrets", {}, 400),
        ("/a\\..\\..", {}, 400),
    ],
)
async def test_what_the_user_has_not_asked_for_is_refused(shell: Shell, path: str, headers: dict[str, str], status: int) -> None:
    async with dashboard() as (_, address), browser(address) as session:
        before = len(shell.cluster.ray.requests)
        url = urlsplit(address)
        cookie = "; ".join(f"{item.key}={item.value}" for item in session.cookie_jar)
        given = {"Host": url.netloc, "Cookie": cookie} | headers
        line = await asyncio.to_thread(_ask, int(url.port or 0), path, given)
        assert line.split()[1] == str(status)
        assert len(shell.cluster.ray.requests) == before


async def test_nobody_without_the_key_is_served(shell: Shell) -> None:
    async with dashboard() as (_, address), browser(address, logged_in=False) as session:
        before = len(shell.cluster.ray.requests)
        for path in ("/", LOGS, "/?key=", "/?key=wrong"):
            async with session.get(path, allow_redirects=False) as answer:
                assert (answer.status, await answer.text()) == (403, "open the address that `finetune dashboard` has printed\n")
        assert len(shell.cluster.ray.requests) == before


async def test_paths_of_the_api_servers_proxy_lead_to_the_dashboard(shell: Shell) -> None:
    ray = shell.cluster.ray

    class Redirecting:
        async def __call__(self, seen: Seen) -> web.Response:
            if seen.path.endswith("/old"):
                return web.Response(
                    status=307, headers={"Location": f"https://api.example{PREFIX}{LOGS}?a=b", "Set-Cookie": "a=b"}
                )
            return await ray(seen)

    shell.cluster.ray = Redirecting()
    async with dashboard() as (_, address), browser(address) as session:
        async with session.get("/api/old", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (307, f"{LOGS}?a=b")
            assert "Set-Cookie" not in answer.headers
        async with session.get(f"{PREFIX}{LOGS}") as answer:
            assert await answer.json() == {"logs": "step 1\n"}


async def test_a_dashboard_that_is_lost_is_told_to_the_browser(shell: Shell) -> None:
    async with dashboard() as (process, address), browser(address) as session:
        shell.cluster.ray.heads[CLUSTER].down = True
        async with session.get(LOGS) as answer:
            assert answer.status == 502
            assert "does not answer" in await answer.text()
        shell.cluster.ray.heads[CLUSTER].down = False
        async with session.get(LOGS) as answer:
            assert answer.status == 200
        assert process.returncode is None


@pytest.mark.parametrize(
    ("denied", "phase", "says"),
    [
        ("get services/proxy", "Running", "you may not reach the Ray dashboard of finetunejob/demo through the API server"),
        ("get secrets", "Running", "logs need the rights"),
        ("", "Succeeded", "the Ray cluster of attempt 1 of finetunejob/demo is gone"),
    ],
)
async def test_a_dashboard_that_cannot_be_reached_is_told(shell: Shell, denied: str, phase: str, says: str) -> None:
    shell.cluster.denied.add(denied)
    if not denied:
        shell.kube.objects["rayclusters"].clear()
    code, out, err = await shell.run("dashboard", "demo")
    assert (code, out, says in err) == (1, "", True), err


def _ask(port: int, path: str, headers: dict[str, str]) -> str:
    """The first line of the answer; the request is sent as it is."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        return connection.makefile("r", encoding="utf-8").readline()
