"""What the operator sees of the cluster: every watched kind in every watched namespace, by LISTs and by events.

One namespace or kind that cannot be read is its own problem: what was known of it stays as it was, it is said, and it is
asked for again. A kind that the API server does not know is not a kind without objects.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from finetune_operator import metrics
from finetune_operator.clients.cache import Cache, Key, job_of, version_number
from finetune_operator.clients.kube import FINETUNE_JOBS, PODS, RAY_CLUSTERS, Kind, KubeClient
from finetune_operator.constants import JOB_LABEL, PLURAL, RELIST_PAUSE_SECONDS, RESYNC_SECONDS
from finetune_operator.errors import KindMissingError, KubeError, KubeUnavailableError
from finetune_operator.queue import WorkQueue

logger = logging.getLogger(__name__)

WATCHED: tuple[tuple[Kind, str], ...] = ((FINETUNE_JOBS, ""), (RAY_CLUSTERS, JOB_LABEL), (PODS, JOB_LABEL))

RETRY_SECONDS = 10.0
"""How often something that could not be read is asked for again: rights that were taken away, KubeRay that is missing."""

FIRST_RETRY_SECONDS = 1.0
"""The same at the start, for an API server that does not answer yet."""

LISTS_TRIED = 3
"""How often a LIST is begun whose state the API server forgets meanwhile."""


@dataclass(frozen=True)
class Place:
    """A kind in a namespace, or in all of them."""

    kind: Kind
    label: str
    namespace: str | None

    def __str__(self) -> str:
        return f"{self.kind.plural} " + (f"in namespace {self.namespace!r}" if self.namespace else "in all namespaces")


@dataclass
class View:
    """The cache and what fills it; each change puts the job that it is about into the queue."""

    kube: KubeClient
    cache: Cache
    queue: WorkQueue[Key]
    namespaces: tuple[str, ...] = ()
    """Those that are watched; none means all."""
    relist: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a watch starts, or starts again: it does not report earlier deletions."""
    restored: defaultdict[str | None, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    """By namespace: set when something can be read that was refused or not installed, so that its watch starts again."""
    failures: dict[Place, KubeError] = field(default_factory=dict)
    """What could not be read at the last try."""

    def places(self) -> list[Place]:
        """All that is watched."""
        return [Place(kind, label, namespace) for kind, label in WATCHED for namespace in self.namespaces or (None,)]

    def event(self, type_: str | None, plural: str, raw: dict[str, Any]) -> None:
        """An object was seen, changed or deleted, as a watch reports it."""
        if type_ == "DELETED":
            self.cache.drop(plural, raw)
        else:
            if type_ is None:
                self.relist.set()
            if not self.cache.put(plural, raw):
                return
        key = (raw["metadata"]["namespace"], raw["metadata"]["name"]) if plural == PLURAL else job_of(raw)
        if key is not None:
            self.queue.add(key)

    async def fill(self) -> None:
        """LIST everything for the first time. It ends when each place was read, or refused by an API server that answers."""
        await self.refill(self.places())
        while waiting := [place for place, error in self.failures.items() if isinstance(error, KubeUnavailableError)]:
            await asyncio.sleep(FIRST_RETRY_SECONDS)
            await self.refill(waiting)

    async def refill(self, places: Iterable[Place]) -> None:
        """LIST these places, and forget the objects that are gone."""
        for place in places:
            try:
                await self._list(place)
            except KubeError as error:
                self._cannot_read(place, error)
            else:
                self._can_read(place)

    async def _list(self, place: Place) -> None:
        for tried in range(1, LISTS_TRIED + 1):
            try:
                await self._list_once(place)
            except KubeError as error:
                if error.status != 410 or tried == LISTS_TRIED:
                    raise
            else:
                return

    async def _list_once(self, place: Place) -> None:
        plural, version = place.kind.plural, 0
        listed: set[str] = set()
        async for page in self.kube.pages(place.kind, place.namespace, place.label):
            version = version_number(page.version)
            for raw in page.items:
                listed.add(raw["metadata"]["uid"])
                if self.cache.put(plural, raw):
                    await asyncio.sleep(0)  # others wait, and a page may hold a hundred objects
        for key in self.cache.prune(plural, listed, version, place.namespace):
            self.queue.add(key)

    def _cannot_read(self, place: Place, error: KubeError) -> None:
        before = self.failures.get(place)
        self.failures[place] = error
        metrics.UNREADABLE.labels(namespace=place.namespace or "", kind=place.kind.plural).set(1)
        if before is None or (type(before), before.status) != (type(error), error.status):
            why = "this kind is not installed" if isinstance(error, KindMissingError) else f"{error.status} {error.message}"
            logger.warning("cannot read %s, other namespaces are served: %s; again every %.0f s", place, why, RETRY_SECONDS)

    def _can_read(self, place: Place) -> None:
        before = self.failures.pop(place, None)
        if before is None:
            return
        metrics.UNREADABLE.labels(namespace=place.namespace or "", kind=place.kind.plural).set(0)
        logger.info("%s can be read now", place)
        if not isinstance(before, KubeUnavailableError):
            self.restored[place.namespace].set()
        self.add_all()

    async def resync(self) -> None:
        """Reconcile every job periodically, whatever the events were, and soon after a watch had to start again."""
        await self._relist()
        gc.freeze()  # what the watches know of each object by now stays
        while True:
            await self._relist()

    async def _relist(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.relist.wait(), RESYNC_SECONDS)
        while self.relist.is_set():
            self.relist.clear()
            await asyncio.sleep(RELIST_PAUSE_SECONDS)
        await self.refill(self.places())
        self.add_all()

    async def retry(self) -> None:
        """Ask again for what could not be read."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            await self.refill(list(self.failures))

    def add_all(self) -> None:
        """Queue every job that something may still happen to: thousands of others may have ended."""
        for key in self.cache.keys(PLURAL):
            if not self.cache.is_at_rest(PLURAL, key):
                self.queue.add(key)
