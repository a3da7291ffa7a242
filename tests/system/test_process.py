"""The operator as a process, with kopf, against an API server that watches: what its probes say, and what does not end it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from tests.support.builders import NAMESPACE, raw_job
from tests.support.fake_kube import FakeKube, Key
from tests.support.http_server import until
from tests.support.operator_process import OperatorProcess, started
from tests.support.watched_kube import WatchedKube

pytestmark = pytest.mark.slow
OTHER = "other"


class Cluster:
    """An API server, and operators that are started against it."""

    def __init__(self, server: WatchedKube, url: str, folder: Path) -> None:
        self.server, self.kube = server, server.kube
        self._url, self._folder = url, folder

    @contextmanager
    def operator(self, **env: str) -> Iterator[OperatorProcess]:
        with started(self._url, self._folder, **env) as process:
            yield process
            assert process.exit_status in {None, 0}, process.log.read_text()[-3000:]

    def add_job(self, namespace: str, name: str) -> Key:
        uid = f"{abs(hash((namespace, name))):032x}"[:32]
        self.kube.put("finetunejobs", raw_job(metadata={"namespace": namespace, "name": name, "uid": uid}))
        return namespace, name

    def status(self, key: Key) -> dict[str, Any]:
        return self.kube.objects["finetunejobs"][key].get("status") or {}

    def clusters_in(self, namespace: str) -> list[Key]:
        return [key for key in self.kube.objects["rayclusters"] if key[0] == namespace]

    async def served(self, key: Key) -> None:
        await until(lambda: self.status(key).get("phase") == "Provisioning", f"{key} is served", seconds=60)


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    server = WatchedKube(FakeKube())
    async with server.serve() as url:
        yield Cluster(server, url, tmp_path)


async def probe(process: OperatorProcess, path: str) -> int | None:
    """The status of an answer; None while nobody listens."""
    try:
        async with aiohttp.ClientSession() as session, session.get(process.probe_url + path) as answer:
            return answer.status
    except aiohttp.ClientError:
        return None


async def test_it_is_alive_before_and_ready_after_the_first_list(cluster: Cluster) -> None:
    cluster.kube.refusals["GET", "finetunejobs"] = (503, "ServiceUnavailable", "overloaded")
    with cluster.operator() as process:
        await process.up()
        await until(lambda: cluster.kube.requests, "it asks the API server")
        assert (await probe(process, "/healthz"), await probe(process, "/readyz")) == (200, 503)
        cluster.kube.refusals.clear()
        await cluster.served(cluster.add_job(NAMESPACE, "first"))
        assert (await probe(process, "/healthz"), await probe(process, "/readyz")) == (200, 200)


@pytest.mark.parametrize("when", ["from the start", "later"])
async def test_a_namespace_that_may_not_be_read_does_not_touch_another_and_is_served_when_it_may_be_again(
    cluster: Cluster, when: str
) -> None:
    places = {(OTHER, plural) for plural in ("finetunejobs", "rayclusters", "pods")}
    if when == "from the start":
        cluster.server.forbidden |= places
    with cluster.operator(FINETUNE_NAMESPACES=f"{NAMESPACE},{OTHER}") as process:
        await cluster.served(cluster.add_job(NAMESPACE, "first"))
        if when == "later":
            cluster.server.forbidden |= places
            await cluster.server.cut()
        said = "cannot read finetunejobs in namespace 'other'" if when == "from the start" else "APIForbiddenError"
        await until(lambda: said in process.log.read_text(), "it is said", seconds=60)
        waiting = cluster.add_job(OTHER, "second")
        await cluster.served(cluster.add_job(NAMESPACE, "third"))
        assert cluster.status(waiting) == {}
        cluster.server.forbidden.clear()
        await cluster.served(waiting)
        await cluster.served(cluster.add_job(OTHER, "fourth"))


@pytest.mark.parametrize("namespaces", ["", NAMESPACE], ids=["whole cluster", "one namespace"])
async def test_kuberay_that_is_installed_later_is_noticed(cluster: Cluster, namespaces: str) -> None:
    cluster.kube.missing.add("rayclusters")
    with cluster.operator(FINETUNE_NAMESPACES=namespaces):
        key = cluster.add_job(NAMESPACE, "first")
        await until(lambda: cluster.status(key).get("reason") == "KubeRayNotInstalled", "it is said", seconds=20)
        cluster.kube.missing.clear()
        cluster.kube.put("customresourcedefinitions", {"metadata": {"name": "rayclusters.ray.io"}, "spec": {"group": "ray.io"}})
        await cluster.served(key)

        def watched() -> bool:
            return any("rayclusters" in path for path, _ in cluster.server.watches)

        await until(watched, "its clusters are watched", seconds=60)


async def test_a_signal_ends_it_in_order(cluster: Cluster) -> None:
    with cluster.operator() as process:
        await cluster.served(cluster.add_job(NAMESPACE, "first"))
        assert await process.terminated() == 0
