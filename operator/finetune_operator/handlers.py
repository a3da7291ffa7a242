"""The handlers of kopf: events become cache entries and queued keys. There is no other logic."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import kopf

from finetune_operator.clients.cache import Cache, Key, job_of
from finetune_operator.constants import GROUP, JOB_LABEL, PLURAL, RAY_GROUP, RAY_PLURAL, RAY_VERSION_API, VERSION
from finetune_operator.queue import WorkQueue


class Memo(kopf.Memo):
    """What handlers share."""

    cache: Cache
    queue: WorkQueue[Key]
    listed: asyncio.Event
    """Set when a watch starts, or starts again: it does not report earlier deletions."""


def configure(settings: kopf.OperatorSettings, *, clusterwide: bool) -> None:
    """Settings of kopf; each prevents a fault that was observed."""
    settings.posting.enabled = False  # our events are our own; kopf's are one per log line
    settings.watching.server_timeout = 300  # streams fall silent behind load balancers
    settings.watching.client_timeout = 330
    settings.watching.reconnect_backoff = 1
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = [min(0.5 * 2**n, 3) for n in range(120)]  # ≤ 3 s, so that sight returns at once
    settings.scanning.disabled = not clusterwide  # a Role cannot list CRDs or namespaces
    settings.watching.label_selectors["", "v1", "pods"] = JOB_LABEL  # otherwise every pod of the cluster would be watched
    settings.watching.label_selectors[RAY_GROUP, RAY_VERSION_API, RAY_PLURAL] = JOB_LABEL
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch the three kinds."""
    kopf.on.login(registry=registry, id="login", retries=1)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="job")(on_job)
    kopf.on.event(RAY_GROUP, RAY_VERSION_API, RAY_PLURAL, registry=registry, id="cluster", labels={JOB_LABEL: kopf.PRESENT})(
        on_child
    )
    kopf.on.event("", "v1", "pods", registry=registry, id="pod", labels={JOB_LABEL: kopf.PRESENT})(on_child)


async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in as a pod does, else as kubectl does."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


async def on_job(type: str | None, body: kopf.Body, memo: Memo, **_: Any) -> None:  # noqa: A002 - kopf's name
    """A FinetuneJob was seen, changed or deleted."""
    raw = dict(body)
    if _take(type, PLURAL, raw, memo):
        memo.queue.add((raw["metadata"]["namespace"], raw["metadata"]["name"]))


async def on_child(type: str | None, body: kopf.Body, resource: kopf.Resource, memo: Memo, **_: Any) -> None:  # noqa: A002
    """A RayCluster or pod that carries a job's label was seen, changed or deleted."""
    raw = dict(body)
    if _take(type, resource.plural, raw, memo) and (key := job_of(raw)) is not None:
        memo.queue.add(key)


def _take(type_: str | None, plural: str, raw: dict[str, Any], memo: Memo) -> bool:
    if type_ == "DELETED":
        memo.cache.drop(plural, raw)
        return True
    if type_ is None:
        memo.listed.set()
    return memo.cache.put(plural, raw)
