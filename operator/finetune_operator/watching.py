"""Let kopf watch: one kopf per namespace, each in a thread of its own.

kopf ends as a whole when one of its watches is refused, and takes every task of its loop with it. In a thread of its own
it takes nothing else, and begins again: so the problem of a namespace stays there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import kopf

from finetune_operator import handlers
from finetune_operator.view import View

logger = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0001
"""How long a thread of kopf may keep the interpreter from the main thread, which asks for it after each send and receive:
a turn of the main loop asks up to a hundred times. Python's own 5 ms add up to some 200 ms of standstill while kopf handles
a LIST, and 0.5 ms to 100 ms, of which the main thread itself computes 30."""

PAUSE_SECONDS = (1.0, 30.0)
"""First and longest pause before a watch that has ended begins again; each is twice the one before."""

SLICE_SECONDS = 0.005
"""How long events are taken before others have their turn."""

LASTED_SECONDS = 60.0
"""A watch that lasted so long did work: the pauses begin with the first again."""


class Events:
    """Events on their way from the threads of kopf to the loop of the view, in their order. Hundreds that come at once, as
    with a LIST of kopf, are worked off in slices, so that everything else has its turn between them.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[str | None, str, dict[str, Any]]] = deque()
        self._arrived = asyncio.Event()

    def tell(self, type_: str | None, plural: str, raw: dict[str, Any]) -> None:
        """Take an event; any thread may call it."""
        self._waiting.append((type_, plural, raw))
        self._loop.call_soon_threadsafe(self._arrived.set)

    async def hand_over(self) -> None:
        """Hand the events to the view, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            until = time.monotonic() + SLICE_SECONDS
            while self._waiting and time.monotonic() < until:
                self._take(*self._waiting.popleft())
            if self._waiting:
                self._arrived.set()
                await asyncio.sleep(0)

    def _take(self, type_: str | None, plural: str, raw: dict[str, Any]) -> None:
        try:
            self._view.event(type_, plural, raw)
        except Exception:
            logger.exception("an event of kind %s cannot be read; the next LIST looks at its object again", plural)


async def watch(view: View) -> None:
    """Watch all namespaces of the view, for ever."""
    sys.setswitchinterval(SWITCH_SECONDS)
    events = Events(view)
    async with asyncio.TaskGroup() as group:
        group.create_task(events.hand_over(), name="events")
        for namespace in view.namespaces or (None,):
            group.create_task(_keep_watching(view, events, namespace), name=f"watch {namespace or 'all namespaces'}")


async def _keep_watching(view: View, events: Events, namespace: str | None) -> None:
    pause = PAUSE_SECONDS[0]
    while True:
        began = time.monotonic()
        view.restored[namespace].clear()
        running = asyncio.create_task(_watch_once(events, namespace))
        restored = asyncio.create_task(view.restored[namespace].wait())
        try:
            await asyncio.wait({running, restored}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()
            restored.cancel()
            failure = (await asyncio.gather(running, restored, return_exceptions=True))[0]
        if restored.done() and not restored.cancelled():
            continue
        if time.monotonic() - began > LASTED_SECONDS:
            pause = PAUSE_SECONDS[0]
        where = f"namespace {namespace!r}" if namespace else "all namespaces"
        logger.warning("the watch of %s has ended, again in %.0f s: %r", where, pause, failure)
        with suppress(TimeoutError):
            await asyncio.wait_for(view.restored[namespace].wait(), pause * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
        pause = min(2 * pause, PAUSE_SECONDS[1])


async def _watch_once(events: Events, namespace: str | None) -> None:
    """One life of kopf; it is stopped when this task is cancelled."""
    loop, stop = asyncio.get_running_loop(), threading.Event()
    memo = handlers.Memo(tell=events.tell)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"watch-{namespace or 'all'}") as executor:
        done = loop.run_in_executor(executor, lambda: asyncio.run(_run_kopf(memo, namespace, stop)))
        try:
            await asyncio.shield(done)
        finally:
            stop.set()
            with suppress(Exception):
                await done


async def _run_kopf(memo: handlers.Memo, namespace: str | None, stop: threading.Event) -> None:
    registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
    handlers.register(registry)
    handlers.configure(settings, clusterwide=namespace is None)
    try:
        await kopf.operator(
            registry=registry,
            settings=settings,
            memo=memo,
            standalone=True,
            clusterwide=namespace is None,
            namespaces=(namespace,) if namespace else (),
            stop_flag=stop,
        )
    finally:
        stop.set()  # a thread of kopf waits for it
