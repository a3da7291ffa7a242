"""``finetune-operator``: starts the watches, the workers, the resync and the metrics, and ends when one of them ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TextIO

import aiohttp
from prometheus_client import start_http_server

from finetune_operator import metrics, probes, watching
from finetune_operator.clients.bounded import bounded_session
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.kube import KubeClient
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.keys import load_keys
from finetune_operator.queue import WorkQueue
from finetune_operator.reconciler import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.text import OneLineFormatter
from finetune_operator.view import View

logger = logging.getLogger("finetune_operator")

COLLECTOR_THRESHOLDS = (10_000, 10, 10)
"""All threads stand still while the garbage collector looks at objects. Python's own (700, 10, 10) let it look at all of them
several times a second while kopf handles a LIST, 50 ms each time. With five times as many as here, a look at new objects takes
25 ms then, and one at those that were new lately 60 ms; now they take 6 and 20. What stays anyway is frozen: it is not
looked at."""


async def serve(settings: Settings) -> None:
    """Run until a signal arrives, or until any part ends: the process must not continue without one of its parts.

    Raises:
        Exception: whatever ended a part.
    """
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    gc.freeze()  # the modules
    ready, stopped = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with probes.answering(settings.probe_port, ready.is_set):
        kube = await KubeClient.connect()
        keys = await load_keys(kube, settings)
        cache = Cache()
        session, dashboard = _dashboards(kube, settings)
        async with session:
            reconciler = Reconciler(kube, RayClient(session), cache, keys, settings, dashboard)
            queue: WorkQueue[Key] = WorkQueue(reconciler.reconcile)
            metrics.QUEUE_LENGTH.set_function(lambda: len(queue))
            metrics.DASHBOARDS_UNREACHABLE.set_function(reconciler.dashboards.unreachable)
            metrics.DASHBOARDS_WAITING.set_function(reconciler.dashboards.waiting)
            view = View(kube, cache, queue, settings.namespaces)
            try:
                await _until(stopped, _work(view, reconciler, settings.workers, ready))
            finally:
                await kube.close()


async def _work(view: View, reconciler: Reconciler, workers: int, ready: asyncio.Event) -> None:
    """Read the cluster; then work, for ever."""
    await view.fill()
    gc.freeze()
    ready.set()
    view.add_all()
    async with asyncio.TaskGroup() as group:
        group.create_task(watching.watch(view), name="watch")
        group.create_task(view.resync(), name="resync")
        group.create_task(view.retry(), name="retry")
        group.create_task(reconciler.look_out(view.queue.add), name="look-out")
        group.create_task(reconciler.dashboards.run(view.queue.add), name="dashboards")
        for number in range(workers):
            group.create_task(view.queue.run_worker(), name=f"worker-{number}")


async def _until(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run until the event is set, or the work ends."""
    tasks = [asyncio.create_task(work, name="work"), asyncio.create_task(stopped.wait(), name="signal")]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()


def _dashboards(kube: KubeClient, settings: Settings) -> tuple[aiohttp.ClientSession, Callable[[str, str, str], Dashboard]]:
    if settings.dashboard_route == "service":
        return bounded_session(), partial(Dashboard.by_service, domain=settings.cluster_domain)
    api_server, session = kube.proxy_session()
    return session, partial(Dashboard.by_proxy, api_server)


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
