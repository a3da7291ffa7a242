"""The handlers of kopf: events are handed to the view. There is no other logic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import kopf

from finetune_operator.constants import GROUP, JOB_LABEL, PLURAL, RAY_GROUP, RAY_PLURAL, RAY_VERSION_API, VERSION


class Memo(kopf.Memo):
    """What handlers share."""

    tell: Callable[[str | None, str, dict[str, Any]], Any]
    """Takes the event's type, the kind's plural and the object."""


def configure(settings: kopf.OperatorSettings, *, clusterwide: bool) -> None:
    """Settings of kopf; each prevents a fault that was observed."""
    settings.posting.enabled = False  # our events are our own; kopf's are one per log line
    settings.watching.server_timeout = 300  # streams fall silent behind load balancers
    settings.watching.client_timeout = 330
    settings.watching.reconnect_backoff = 1
    settings.watching.chunk_size = 25  # a page is parsed in one piece, in which the other threads stand still: 1 to 5 ms
    settings.queueing.idle_timeout = 0.1  # each object has a task until it was idle so long: 11,000 tasks after a LIST
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = [
        min(0.5 * 2**n, 3) for n in range(120)
    ]  # ≤ 3 s, so that sight returns at once, for 6 min
    settings.scanning.disabled = not clusterwide  # a Role cannot list CRDs or namespaces
    settings.watching.label_selectors["", "v1", "pods"] = JOB_LABEL  # otherwise every pod of the cluster would be watched
    settings.watching.label_selectors[RAY_GROUP, RAY_VERSION_API, RAY_PLURAL] = JOB_LABEL
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # signals are the main thread's business


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch the three kinds."""
    kopf.on.login(registry=registry, id="login", retries=1)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="job")(on_event)
    kopf.on.event(RAY_GROUP, RAY_VERSION_API, RAY_PLURAL, registry=registry, id="cluster", labels={JOB_LABEL: kopf.PRESENT})(
        on_event
    )
    kopf.on.event("", "v1", "pods", registry=registry, id="pod", labels={JOB_LABEL: kopf.PRESENT})(on_event)


async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in as a pod does, else as kubectl does."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


async def on_event(type: str | None, body: kopf.Body, resource: kopf.Resource, memo: Memo, **_: Any) -> None:  # noqa: A002
    """An object was seen, changed or deleted."""
    memo.tell(type, resource.plural, dict(body))
