"""The master key: who makes it, how often, and where it is read."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kubernetes.aio import client
from tests.support.builders import UID
from tests.support.fake_kube import FakeKube
from tests.support.http_server import running

from finetune_operator.clients.kube import KubeClient
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.errors import KubeError
from finetune_operator.keys import load_keys
from finetune_operator.settings import Settings

WHERE = ("finetune-system", "fto-keys")
SETTINGS = Settings(token_key_secret="/".join(WHERE))
OLD, NEW = b"o" * 64, b"n" * 64


@asynccontextmanager
async def connected(server: FakeKube) -> AsyncIterator[KubeClient]:
    async with running(server) as url:
        kube = KubeClient(client.ApiClient(client.Configuration(host=url)))
        try:
            yield kube
        finally:
            await kube.close()


def put_key(server: FakeKube, text: bytes | None) -> None:
    data = {} if text is None else {"data": {"key": base64.b64encode(text).decode()}}
    server.put("secrets", {"metadata": {"namespace": WHERE[0], "name": WHERE[1]}, **data})


async def test_the_key_is_made_once_and_read_at_each_later_start() -> None:
    server = FakeKube()
    async with connected(server) as kube:
        first = await load_keys(kube, SETTINGS)
        second = await load_keys(kube, SETTINGS)
    assert first == second
    (key,) = first.keys
    assert len(key) >= 32
    assert [plural for plural, _made in server.created] == ["secrets"]
    assert {seen.method for seen in server.requests} == {"GET", "POST"}, "nothing is ever written over it"


async def test_operators_that_start_together_use_one_key() -> None:
    server = FakeKube()
    async with connected(server) as kube:
        found = await asyncio.gather(*(load_keys(kube, SETTINGS) for _ in range(20)))
    assert len(set(found)) == 1
    assert len(server.created) == 1


async def test_two_installs_have_two_keys() -> None:
    found = []
    for _ in range(2):
        async with connected(FakeKube()) as kube:
            found.append(await load_keys(kube, SETTINGS))
    assert found[0] != found[1]


async def test_the_key_of_an_earlier_chart_is_kept() -> None:
    server = FakeKube()
    put_key(server, OLD)
    async with connected(server) as kube:
        assert await load_keys(kube, SETTINGS) == KeyRing((OLD,))
    assert server.created == []


async def test_a_line_before_the_old_one_rotates_the_key_and_old_clusters_keep_theirs() -> None:
    server = FakeKube()
    put_key(server, NEW + b"\n" + OLD + b"\n")
    async with connected(server) as kube:
        keys = await load_keys(kube, SETTINGS)
    old = KeyRing((OLD,))
    assert keys.current_id == KeyRing((NEW,)).current_id
    assert keys.token_of(UID, old.current_id) == old.token(UID)


@pytest.mark.parametrize("text", [None, b"", b"short"])
async def test_a_secret_without_a_usable_key_is_named_and_left_as_it_is(text: bytes | None) -> None:
    """A new key in its place would shut the operator out of every running job's dashboard."""
    server = FakeKube()
    put_key(server, text)
    async with connected(server) as kube:
        with pytest.raises(ValueError, match=r"Secret finetune-system/fto-keys, key key, must hold master keys of at least 32"):
            await load_keys(kube, SETTINGS)
    assert all(seen.method == "GET" for seen in server.requests)


async def test_what_is_no_base64_is_said_to_be_none() -> None:
    server = FakeKube()
    server.put("secrets", {"metadata": {"namespace": WHERE[0], "name": WHERE[1]}, "data": {"key": "!"}})
    async with connected(server) as kube:
        with pytest.raises(ValueError, match="is not base64"):
            await load_keys(kube, SETTINGS)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_without_the_right_to_its_secret_the_operator_does_not_start_with_a_key_of_its_own(method: str) -> None:
    server = FakeKube()
    server.refusals[method, "secrets"] = (403, "Forbidden", "no")
    async with connected(server) as kube:
        with pytest.raises(KubeError):
            await load_keys(kube, SETTINGS)


async def test_a_file_is_read_where_no_secret_is_set(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(OLD)
    server = FakeKube()
    async with connected(server) as kube:
        assert await load_keys(kube, Settings(token_key_file=tmp_path / "key")) == KeyRing((OLD,))
    assert server.requests == []
