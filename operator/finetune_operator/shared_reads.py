"""What many jobs look at while they wait, read once for all of them.

Each thing is read at most once in a time that grows with how many different things are asked for, so the API server gets
no more than a few requests a second, however many jobs wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from finetune_operator.clients.kube import CLAIMS, NODES, WORKLOADS, Kind, KubeClient
from finetune_operator.errors import KubeError, KubeUnavailableError

T = TypeVar("T")
Object = dict[str, Any]

SHARED_SECONDS = 5.0
"""How long an answer is reused at least."""

READS_PER_SECOND = 6.0
"""Different things that are read again in a second, and so the longest reuse of an answer."""

READS_AT_ONCE = 30
"""How many of them after a time without reads."""

NODES_SECONDS = 15.0
"""The same for nodes: a LIST of thousands of them is many requests."""

UNASKED_SECONDS = 300.0
"""An answer that nobody has asked for in this time is forgotten."""


@dataclass
class _Answer:
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    read: float | None = None
    asked: float = 0.0
    value: Any = None


class SharedReads:
    """Answers of the API server that are reused for a while."""

    def __init__(self, kube: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self.kube = kube
        self._clock = clock
        self._answers: OrderedDict[Hashable, _Answer] = OrderedDict()
        self._reads_left, self._counted = float(READS_AT_ONCE), clock()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object as it was a moment ago; an object that may not be read is taken to be there."""
        return await self._once((kind, namespace, name), lambda: _unless_forbidden(self.kube.get(kind, namespace, name), {}))

    async def claim_exists(self, namespace: str, name: str) -> bool:
        """Whether there is a claim: all claims of a namespace are one request, where the operator may list them."""
        names: frozenset[str] | None = await self._once(
            (CLAIMS, namespace), lambda: _unless_forbidden(self.kube.names(CLAIMS, namespace), None)
        )
        return await self.get(CLAIMS, namespace, name) is not None if names is None else name in names

    async def allocatable(self) -> list[dict[str, str]]:
        """What each node offers; nothing if the operator may not list them."""
        return await self._once((NODES,), self._read_nodes, NODES_SECONDS)

    async def workloads(self, namespace: str, cluster_uid: str) -> list[Object]:
        """Kueue's Workloads of a RayCluster; none if the operator may not read them, or Kueue is not installed."""
        found: dict[str, list[Object]] = await self._once((WORKLOADS, namespace), lambda: self._read_workloads(namespace))
        return found.get(cluster_uid, [])

    async def _read_nodes(self) -> list[dict[str, str]]:
        nodes: list[Object] = await _unless_forbidden(self.kube.list(NODES), [])
        return [(node.get("status") or {}).get("allocatable") or {} for node in nodes]

    async def _read_workloads(self, namespace: str) -> dict[str, list[Object]]:
        result: dict[str, list[Object]] = defaultdict(list)
        try:
            found = await self.kube.list(WORKLOADS, namespace, WORKLOAD_LABEL)
        except KubeUnavailableError:
            raise
        except KubeError:
            return result
        for raw in found:
            result[raw["metadata"]["labels"][WORKLOAD_LABEL]].append(raw)
        return result

    async def _once(self, key: Hashable, read: Callable[[], Awaitable[T]], seconds: float = SHARED_SECONDS) -> T:
        answer = self._answers.setdefault(key, _Answer())
        answer.asked = self._clock()
        self._answers.move_to_end(key)
        self._forget_the_unasked()
        async with answer.reading:  # those who come meanwhile share the answer, too
            now = self._clock()
            old = answer.read is not None and now - answer.read >= max(seconds, len(self._answers) / READS_PER_SECOND)
            if answer.read is None or (old and self._may_read_again(now)):
                answer.value = await read()
                answer.read = now
            result: T = answer.value
            return result

    def _may_read_again(self, now: float) -> bool:
        """Whether another request can be made now: what was read for the first time all at once gets old all at once."""
        self._reads_left = min(self._reads_left + (now - self._counted) * READS_PER_SECOND, READS_AT_ONCE)
        self._counted = now
        if self._reads_left < 1:
            return False
        self._reads_left -= 1
        return True

    def _forget_the_unasked(self) -> None:
        while next(iter(self._answers.values())).asked < self._clock() - UNASKED_SECONDS:
            self._answers.popitem(last=False)


WORKLOAD_LABEL = "kueue.x-k8s.io/job-uid"
"""Kueue's label on a Workload: the UID of the RayCluster."""


async def _unless_forbidden(look: Awaitable[T], otherwise: T) -> T:
    """Treat what the operator may not read as existing: then the scheduler reports what is missing."""
    try:
        return await look
    except KubeUnavailableError:
        raise
    except KubeError as error:
        if error.status != 403:
            raise
        return otherwise
