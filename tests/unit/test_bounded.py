"""Answers of a dashboard whose image a user has chosen: whatever it sends, it costs some time and memory, and no other job."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic

import aiohttp
import pytest
from tests.support.builders import UID, raw_progress
from tests.support.http_server import Canned, a_moment, running

from finetune_operator.clients.bounded import ANSWER_LIMIT, bounded_session, parse_object
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.errors import RayUnavailableError

ID = f"{UID}-a1"
RUNNING = json.dumps({"submission_id": ID, "status": "RUNNING"})
Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """A server that answers each request with whatever bytes it likes; gives the address."""

    tasks: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await talk(writer)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        server.close()
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


async def endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"".join(b"X-%d: %s\r\n" % (number, b"x" * 4000) for number in range(16)))
        await writer.drain()


async def endless_interim_answers(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
        await writer.drain()
        await a_moment()


async def slow_drops(writer: asyncio.StreamWriter) -> None:
    """Something comes all the time, so that no limit between two reads is ever reached."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"{")
        await writer.drain()
        await a_moment()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "talk", [endless_body, endless_headers, endless_interim_answers, slow_drops], ids=lambda talk: talk.__name__
)
async def test_no_answer_takes_more_than_some_memory_and_seconds(talk: Talk) -> None:
    async with talking(talk) as url, bounded_session() as session:
        tracemalloc.start()
        began = monotonic()
        found = await RayClient(session).job(Dashboard(url, "t"), ID)
        seconds, (_now, peak) = monotonic() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert seconds < 20, "the limit is five; this machine may be busy"
    assert found.state == "Unknown"
    assert found.cause


async def test_a_compressed_answer_is_neither_asked_for_nor_unpacked() -> None:
    bomb = gzip.compress(b"{" + b" " * 50_000_000 + b"}")

    async def talk(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)

    async with talking(talk) as url, bounded_session() as session:
        tracemalloc.start()
        found = await RayClient(session).job(Dashboard(url, "t"), ID)
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * 2**20
    assert found.cause == "its answer has the Content-Encoding 'gzip', which was not asked for"
    server = Canned(body=RUNNING)
    async with running(server) as url, bounded_session() as session:
        assert (await RayClient(session).job(Dashboard(url, "t"), ID)).state == "RUNNING"
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("charset", ["punycode", "hex", "idna", "utf-7", "rot13", "no-such-charset", "utf-16"])
async def test_the_charset_that_a_peer_names_is_not_used(charset: str) -> None:
    async def talk(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset={charset}\r\nContent-Length: {len(RUNNING)}\r\n\r\n"
        writer.write((head + RUNNING).encode())

    async with talking(talk) as url, bounded_session() as session:
        assert (await RayClient(session).job(Dashboard(url, "t"), ID)).state == "RUNNING"


async def test_a_long_answer_in_punycode_does_not_block_the_loop() -> None:
    body = b"a" * 100_000 + b"-" + b"9a" * 50_000

    async def talk(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=punycode\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    began = monotonic()
    async with talking(talk) as url, bounded_session() as session:
        assert (await RayClient(session).job(Dashboard(url, "t"), ID)).state == "Unknown"
    assert monotonic() - began < 5


async def test_malformed_bytes_are_replaced() -> None:
    async def talk(writer: asyncio.StreamWriter) -> None:
        body = b'{"status": "FAILED", "message": "caf\xe9 \xff"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with talking(talk) as url, bounded_session() as session:
        assert (await RayClient(session).job(Dashboard(url, "t"), ID)).message == "caf� �"


async def test_a_cookie_of_one_dashboard_is_sent_to_none() -> None:
    server = Canned(body=RUNNING, headers={"Set-Cookie": "tenant=a; Path=/; Domain=localhost"})
    async with running(server) as url, bounded_session() as session:
        ray, address = RayClient(session), url.replace("127.0.0.1", "localhost")
        for _ in range(2):
            await ray.job(Dashboard(address, "t"), ID)
    assert [seen.headers.get("Cookie") for seen in server.seen] == [None, None]


async def test_the_words_of_a_refusal_are_cut() -> None:
    async with running(Canned(503, "x" * 200_000)) as url, bounded_session() as session:
        with pytest.raises(RayUnavailableError) as error:
            await RayClient(session).submit(Dashboard(url, "t"), {})
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 50_000, "9" * 100_000, '{"a": ' + "9" * 100_000 + "}", "null", '"x"', "", "\x00"],
    ids=["brackets", "objects", "digits", "digits in an object", "null", "a string", "nothing", "a zero byte"],
)
def test_what_is_no_object_is_an_empty_one(text: str) -> None:
    assert parse_object(text) == {}


def test_every_text_in_an_answer_is_cut_and_cleaned() -> None:
    nested = {"a\x1b": ["x" * 10_000, {"b": "\ud800\x00y", "c": 1.5, "d": None}]}
    found = parse_object(json.dumps(nested))
    assert list(found) == ["a"]
    assert len(found["a"][0]) == 4096
    assert found["a"][1] == {"b": "y", "c": 1.5, "d": None}


async def test_the_largest_report_that_a_run_can_write_is_read() -> None:
    """Names of 63 characters for each of 256 workers with four ranks."""
    hosts = ["h" * 63] * 1024
    report = raw_progress(world={"size": 1024, "hosts": hosts, "devices": ["cuda:0"] * 1024, "backend": "nccl"})
    assert len(json.dumps(report)) < ANSWER_LIMIT / 2
    async with running(Canned(body="1" + json.dumps(report))) as url, bounded_session() as session:
        found = await RayClient(session).progress(Dashboard(url, "t"), "10.0.0.1")
    assert found is not None
    assert found.world is not None
    assert len(found.world.hosts) == 1024


async def test_a_session_that_keeps_cookies_or_unpacks_is_not_taken() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ValueError, match="bounded_session"):
            RayClient(session)
