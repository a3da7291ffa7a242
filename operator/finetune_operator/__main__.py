"""``finetune-operator``: starts the watches, the workers, the resync and the metrics, and ends when one of them ends."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TextIO

import aiohttp
import kopf
from prometheus_client import start_http_server

from finetune_operator import handlers, metrics
from finetune_operator.clients.bounded import bounded_session
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.kube import FINETUNE_JOBS, PODS, RAY_CLUSTERS, Kind, KubeClient
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.constants import JOB_LABEL, PLURAL, RELIST_PAUSE_SECONDS, RESYNC_SECONDS
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.queue import WorkQueue
from finetune_operator.reconciler import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.text import OneLineFormatter

logger = logging.getLogger("finetune_operator")

WATCHED: tuple[tuple[Kind, str], ...] = ((FINETUNE_JOBS, ""), (RAY_CLUSTERS, JOB_LABEL), (PODS, JOB_LABEL))


async def refill(kube: KubeClient, cache: Cache, namespaces: tuple[str, ...]) -> None:
    """LIST every watched kind, and forget objects that are gone."""
    for kind, label in WATCHED:
        known = cache.keys(kind.plural)
        listed = [raw for namespace in namespaces or (None,) for raw in await kube.list(kind, namespace, label)]
        cache.prune(kind.plural, listed, known)


async def resync(kube: KubeClient, memo: handlers.Memo, namespaces: tuple[str, ...]) -> None:
    """Reconcile every job periodically, whatever the events were, and soon after a watch had to start again.

    An unavailable API server is not an error here.
    """
    cache, queue = memo.cache, memo.queue
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(memo.listed.wait(), RESYNC_SECONDS)
        while memo.listed.is_set():
            memo.listed.clear()
            await asyncio.sleep(RELIST_PAUSE_SECONDS)
        try:
            await refill(kube, cache, namespaces)
        except Exception:
            logger.exception("resync failed; again in %.0f s", RESYNC_SECONDS)
        add_all(cache, queue)


def add_all(cache: Cache, queue: WorkQueue[Key]) -> None:
    """Queue every job, first those that have not ended: there may be thousands of others."""

    def has_ended(key: Key) -> bool:
        job = cache.get(PLURAL, key) or {}
        return "completionTime" in (job.get("status") or {})

    for key in sorted(cache.keys(PLURAL), key=has_ended):
        queue.add(key)


async def serve(settings: Settings) -> None:
    """Run until a signal arrives, or until any part ends: the process must not continue without one of its parts.

    Raises:
        Exception: whatever ended a part.
    """
    keys = KeyRing.read(settings.token_key_file)
    kube = await KubeClient.connect()
    cache = Cache()
    session, dashboard = _dashboards(kube, settings)
    async with session:
        reconciler = Reconciler(kube, RayClient(session), cache, keys, settings, dashboard)
        queue: WorkQueue[Key] = WorkQueue(reconciler.reconcile)
        metrics.QUEUE_LENGTH.set_function(lambda: len(queue))
        metrics.DASHBOARDS_UNREACHABLE.set_function(reconciler.dashboards.unreachable)
        metrics.DASHBOARDS_WAITING.set_function(reconciler.dashboards.waiting)
        await refill(kube, cache, settings.namespaces)
        add_all(cache, queue)
        memo = handlers.Memo(cache=cache, queue=queue, listed=asyncio.Event())
        tasks = [asyncio.create_task(watch(settings, memo), name="watch")]
        tasks += [asyncio.create_task(queue.run_worker(), name=f"worker-{n}") for n in range(settings.workers)]
        tasks.append(asyncio.create_task(reconciler.dashboards.run(queue.add), name="dashboards"))
        tasks.append(asyncio.create_task(resync(kube, memo, settings.namespaces), name="resync"))
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await kube.close()
        for task in done:
            task.result()


def _dashboards(kube: KubeClient, settings: Settings) -> tuple[aiohttp.ClientSession, Callable[[str, str, str], Dashboard]]:
    if settings.dashboard_route == "service":
        return bounded_session(), partial(Dashboard.by_service, domain=settings.cluster_domain)
    api_server, session = kube.proxy_session()
    return session, partial(Dashboard.by_proxy, api_server)


async def watch(settings: Settings, memo: handlers.Memo) -> None:
    """Let kopf feed the cache and the queue."""
    registry = kopf.OperatorRegistry()
    handlers.register(registry)
    options = kopf.OperatorSettings()
    handlers.configure(options, clusterwide=not settings.namespaces)
    await kopf.operator(
        registry=registry,
        settings=options,
        memo=memo,
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.probe_port}/healthz",
    )


def log_handler(stream: TextIO) -> logging.Handler:
    """Writes one line for each record, whatever others have written into it, with the time in UTC."""
    formatter = OneLineFormatter("%(asctime)sZ %(levelname)s %(name)s %(message)s")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    return handler


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, handlers=[log_handler(sys.stderr)])
    settings = Settings()
    start_http_server(settings.metrics_port)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
