"""What happens while no watch is open: the operator's view of a real API server becomes that of a LIST again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kubernetes.aio import client
from tests.support.api_proxy import ApiProxy
from tests.support.http_server import until
from tests.support.jobs import finetune_job, tool_pod
from tests.support.kubectl import Kubectl, Object

from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.kube import KubeClient
from finetune_operator.constants import JOB_LABEL
from finetune_operator.queue import WorkQueue
from finetune_operator.view import WATCHED, View
from finetune_operator.watching import watch

KINDS = tuple(kind.plural for kind, _ in WATCHED)
PATHS = {f"{kind.prefix}/{kind.plural}" for kind, _ in WATCHED}


def family(number: int) -> list[Object]:
    """A job that is suspended, a cluster without pods and a pod that no node takes: nobody changes them."""
    name = f"watched-{number}"
    job = finetune_job(name, suspend=True)
    labels = {JOB_LABEL: name}
    pod = tool_pod(name, "localhost/nobody-built-this:1", ["true"], {})
    pod["metadata"]["labels"] = labels
    pod["spec"]["nodeSelector"] = {"nowhere": "here"}
    template = {"spec": {"containers": [{"name": "ray-head", "image": "localhost/nobody-built-this:1"}]}}
    head = {"rayStartParams": {}, "template": template}
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": name, "labels": labels}}
    return [job, cluster | {"spec": {"suspend": True, "headGroupSpec": head}}, pod]


def there(api: Kubectl) -> dict[str, set[Key]]:
    """What a LIST says of the namespace."""
    kinds = {kind: api.list(kind, label) for kind, label in zip(KINDS, ("", JOB_LABEL, JOB_LABEL), strict=True)}
    return {kind: {(api.namespace, item["metadata"]["name"]) for item in items} for kind, items in kinds.items()}


def delete(api: Kubectl, *numbers: int) -> None:
    for kind in KINDS:
        names = [f"watched-{number}" for number in numbers]
        api.run("delete", kind, *names, "--ignore-not-found", "--grace-period=0", "--force", "--timeout=240s")


@asynccontextmanager
async def looking_on(url: str) -> AsyncIterator[Cache]:
    """The operator's watches, cache and resync; nobody reconciles."""

    async def nothing(_: Key) -> None:
        return None

    kube = KubeClient(client.ApiClient(client.Configuration(host=url)))
    view = View(kube, Cache(), WorkQueue(nothing))
    await view.fill()
    tasks = [asyncio.create_task(watch(view)), asyncio.create_task(view.resync())]
    try:
        yield view.cache
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await kube.close()


async def test_what_was_deleted_while_a_watch_was_down_and_its_place_forgotten_is_gone(
    api: Kubectl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is 410; kopf lists anew, and its LIST tells of no deletion."""
    api.apply(*(item for number in range(4) for item in family(number)))
    try:
        async with ApiProxy.open(api) as proxy:
            proxy.write_kubeconfig(tmp_path / "kubeconfig")
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            async with looking_on(proxy.url) as cache:

                def seen() -> dict[str, set[Key]]:
                    return {kind: {key for key in cache.keys(kind) if key[0] == api.namespace} for kind in KINDS}

                await asyncio.to_thread(api.apply, *family(4))
                await until(lambda: all((api.namespace, "watched-4") in names for names in seen().values()), "it watches")
                proxy.cut()
                await asyncio.to_thread(delete, api, 0, 2, 4)
                await asyncio.to_thread(api.apply, *family(5))
                expected = await asyncio.to_thread(there, api)
                assert seen() != expected
                proxy.mend()
                await until(lambda: set(proxy.expired) >= PATHS, "every watch is told that its place is forgotten")
                await until(lambda: seen() == expected, f"the view of a LIST; {seen()} is not {expected}", seconds=30)
    finally:
        delete(api, *range(6))
